"""Tokenise documents for the language models: shards that the workload finewebedu_lm_124m is trained on.

    python -m scripts.prepare_text --dataset=HuggingFaceFW/fineweb-edu --config=sample-10BT --out=~/data/fineweb_edu
    python -m scripts.prepare_text --files='texts/*.txt' --held_out=.1 --out=data/mine
    python -m scripts.prepare_text --files='dump/*.jsonl.gz,more/*.jsonl.gz' --field=body --out=data/mine

Documents of the Hugging Face hub are streamed, and kept as tokens of GPT-2's byte-pair encoding alone. Local files are
text (a document each), JSON lines or parquet. A share of the documents, chosen by a hash of their text, is held out for
validation. If the command is stopped or killed, the same command continues and ends with the same bytes. See
docs/language_model.md.
"""

import os
import time
from pathlib import Path

from absl import flags
from tqdm import tqdm

from miniperf.workloads.finewebedu_lm.prepare import Settings, prepare
from miniperf.workloads.finewebedu_lm.sources import Source
from scripts.start import start
from weight_averaging.words import counted

FLAGS = flags.FLAGS

flags.DEFINE_string("dataset", None, "Name of a data set of the Hugging Face hub.")
flags.DEFINE_string("config", None, "Name of its configuration, where it has several: sample-10BT.")
flags.DEFINE_string("split", "train", "Name of its split, which is divided into training and validation here.")
flags.DEFINE_list("files", [], "Patterns of local .txt, .jsonl or .parquet files, in place of --dataset.")
flags.DEFINE_string("field", "text", "Name of the field or column that holds the text.")
flags.DEFINE_string("out", None, "Folder into which the shards are written.", required=True)
flags.DEFINE_float(
    "held_out", 0.0005, "Share of the documents that is held out for validation. The default is 5M of 10B tokens."
)
flags.DEFINE_integer("max_tokens", None, "Number of training tokens to stop at; default: all documents are read.")
flags.DEFINE_integer("shard_tokens", 100_000_000, "Number of tokens in a shard, of two bytes each.")
flags.DEFINE_integer(
    "threads", os.cpu_count(), "Number of threads that encode; default: one for each core.", lower_bound=1
)


def run() -> None:
    source = Source(FLAGS.dataset, FLAGS.config, FLAGS.split, tuple(FLAGS.files), FLAGS.field)
    settings = Settings(FLAGS.held_out, FLAGS.shard_tokens, FLAGS.max_tokens)
    folder, begin = Path(FLAGS.out).expanduser(), time.perf_counter()
    with tqdm(unit="doc", disable=None, dynamic_ncols=True, desc=folder.name) as bar:

        def report(documents: int, tokens: int, total: int | None) -> None:
            bar.total = total
            bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens", refresh=False)
            bar.update(documents - bar.n)

        index = prepare(source, settings, folder, FLAGS.threads, report)
    for split, shards in index["splits"].items():
        tokens = sum(shard["tokens"] for shard in shards)
        print(f"{split}: {tokens:,} tokens in {counted(len(shards), 'shard')}")
    documents = index["documents"]
    print(f"{folder}: {documents:,} document{'' if documents == 1 else 's'}, {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    start(run)
