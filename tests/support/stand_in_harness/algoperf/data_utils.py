PrefetchedWrapper = None
