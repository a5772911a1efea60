"""The official finewebedu_lm through official_driver.py: small, or as it is with --full. Needs a harness of 2026.

python tests/processes/official_lm.py lawa
python tests/processes/official_lm.py lawa --framework=jax --full
"""

import argparse
import importlib

from tests.processes import official_driver as driver

NAME = "finewebedu_lm"
SMALL = {"_vocab_size": 320, "_seq_len": 32, "_emb_dim": 32, "_n_heads": 2, "_n_layers": 2, "_mlp_dim": 256}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("submission")
    parser.add_argument("--framework", default="pytorch")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    driver.flags.FLAGS.framework = arguments.framework
    workload = importlib.import_module("algoperf.workloads.finewebedu_lm.workload").BaseLmWorkload
    if not arguments.full:
        for name, value in SMALL.items():
            setattr(workload, name, value)
        driver.EXAMPLES[NAME] = 4
        driver.CHEAP += (NAME,)
    driver.main(arguments.submission, NAME)


if __name__ == "__main__":
    main()
