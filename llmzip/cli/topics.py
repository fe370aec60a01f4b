"""help: topics that no single option covers."""

from __future__ import annotations

import argparse

from llmzip.cli.usage import UsageError

TOPICS = {
    "style": """\
The options of gzip and zstd work: llmzip FILE compresses to FILE.llmz, llmzip -d FILE.llmz
restores it, -t verifies, -l lists; -c writes to stdout, -o to a file, -f overwrites, -r enters
folders, -k keeps the input (the default), --rm removes it; letters combine (-dc). Without a file,
llmzip reads stdin and writes to stdout. The same as commands: llmzip compress, decompress, test,
list, info, inspect, models, doctor, bench, pack, unpack, train. If a file has the name of a
command, write ./NAME.""",
    "pipes": """\
git diff | llmzip | llmzip -d
tar --use-compress-program=llmzip -cf x.tar.llmz DIR      and back: -xf
llmzip -c book.txt | age -r RECIPIENT > book.llmz.age     and: age -d … | llmzip -d
llmzip -c book.txt | gpg --symmetric > book.llmz.gpg
minisign -Sm book.txt.llmz
Archives are neither encrypted nor signed: compress first, then encrypt or sign. llmzip writes
archives to a terminal only with -f. If a pipe breaks, it ends without a message.""",
    "models": """\
The embedded models (see llmzip models) are part of the package. --model takes any other: a folder
in Hugging Face format or a hub id, with safetensors and tokenizer.json. An archive stores the
digest of its model and is decoded with no other. To decompress, name a model that is neither
embedded nor installed again, or pass --allow-download if the archive names a hub id.
HF_HUB_OFFLINE=1 forbids access to the hub. llmzip train makes a model of your own kind of text.
--fast chooses the smallest embedded model, more streams and less mixing, --best the largest model;
--model and --streams set each.""",
    "exactness": """\
The compressor and the decompressor must compute the same probabilities, to the last bit. llmzip
computes in integers and single IEEE 754 operations, so threads, batches, instruction sets, devices
and library versions do not change the result (docs/exactness.md). llmzip doctor checks this
machine. --same-environment runs any model in floating point; then only the same machine and
library versions can decode. The archive stores them, and llmzip verifies each frame it writes.""",
    "damage": """\
Each frame has its own checksums. llmzip test reports the frames and bytes that are lost.
llmzip decompress --salvage writes all intact content, reports which bytes are missing, and exits
with code 1. It never writes wrong bytes: it verifies each frame by its checksum. There is no error
correction: keep copies of important data.""",
    "security": """\
Archives and models may come from untrusted sources. Models are safetensors and JSON: llmzip loads
no pickle and runs no code from a model. An archive cannot cause a download without
--allow-download. llmzip checks lengths before it allocates memory; --max-output refuses longer
content before it is decoded. Archives are not encrypted: whoever has the model can read them, and
stored frames (raw, zstd, LZMA; llmzip info) need none.""",
    "exit-codes": """\
0    success
1    a problem with the data or the machine; one line on stderr for each input
2    wrong usage
130  interrupted or terminated; no partial file is left""",
}


def show(arguments: argparse.Namespace) -> None:
    """The command `help`. Raises UsageError for an unknown topic."""
    topic = arguments.topic
    if topic is None:
        print("Topics, for llmzip help TOPIC:")
        for name, text in TOPICS.items():
            print(f"  {name:<12}{text.splitlines()[0]}")
        print("llmzip --help lists the commands, llmzip help COMMAND describes one.")
    elif topic in TOPICS:
        print(TOPICS[topic])
    else:
        raise UsageError(f"no topic {topic!r}; the topics are {', '.join(TOPICS)}")
