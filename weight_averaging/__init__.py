"""Weight averaging along a training run: LAWA (the mean of the latest snapshots) and EMA (an exponential average).

Three lines in a training loop:

    from weight_averaging.torch import LAWA

    lawa = LAWA.for_run(model, total_updates=1000)        # 1: what to average: the last 1 %
    for step, batch in enumerate(batches, start=1):
        train_on(batch)
        optimizer.step()
        lawa.update(step)                                 # 2: after every optimizer update
        if step % 500 == 0:
            with lawa.averaged():                         # 3: evaluate, or save, the averaged model
                evaluate(model)

Training never sees the average. Save and load `lawa.state_dict()` beside the model's and the optimizer's.

The methods and the recommended settings are those of Ajroldi, Orvieto and Geiping, "When, Where and Why to Average
Weights?", ICML 2025 (arXiv 2502.06761): average over about 1 % of training.
"""
