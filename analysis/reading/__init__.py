"""Files of runs: logs, evaluations and meta data, official, published and miniperf's alike."""
