"""help: short texts on what no single option tells."""

from __future__ import annotations

import argparse

from llmzip.cli.usage import UsageError

TOPICS = {
    "style": """\
As gzip and zstd: llmzip FILE compresses to FILE.llmz, llmzip -d FILE.llmz restores, -t verifies,
-l lists; -c writes to stdout, -o to a name, -f overwrites, -r goes into folders, -k keeps the
input (the default), --rm removes it; letters combine (-dc). Without a file, stdin goes to stdout.
Or by commands: llmzip compress, decompress, test, list, info, inspect, models, doctor, bench,
pack, unpack, train. A file that is called like a command is given as ./NAME.""",
    "pipes": """\
git diff | llmzip | llmzip -d
tar --use-compress-program=llmzip -cf x.tar.llmz DIR      and back: -xf
llmzip -c book.txt | age -r RECIPIENT > book.llmz.age     and: age -d … | llmzip -d
llmzip -c book.txt | gpg --symmetric > book.llmz.gpg
minisign -Sm book.txt.llmz
An archive has no encryption and no signature of its own: compress first, then encrypt or sign.
Nothing is written to a terminal without -f, and a pipe that breaks ends the program quietly.""",
    "models": """\
The embedded models (llmzip models) come with the package; others are named by --model: a folder
in Hugging Face format or a hub id, with safetensors and tokenizer.json. An archive carries the
digest of its model, and is decoded with no other. What is not embedded must be named again, or
fetched with --allow-download if the archive names a hub id. HF_HUB_OFFLINE=1 forbids the network.
llmzip train makes a model of your own kind of text. --fast takes more streams, and a smaller model
if one is embedded, --best fewer and a larger one; --streams and --model say it in detail.""",
    "exactness": """\
Compressor and decompressor must compute the same probabilities to the last bit. Here the model
runs in integers and single IEEE-754 operations, so that threads, batches, instruction sets,
devices and library versions cannot matter (docs/exactness.md). llmzip doctor checks this machine.
--same-environment takes any model in plain floating point; then only the same machine and versions
can decode, the archive knows which, and every frame is verified when it is written.""",
    "damage": """\
Every frame has checks of its own. llmzip test names the frames and bytes that are lost, if any;
llmzip decompress --salvage writes all that is whole, one piece after the other, and tells which
bytes are missing, with exit code 1. Wrong bytes are never given away: each piece is vouched for by
its check. There is no error correction: keep copies of what matters.""",
    "security": """\
Archives and models may come from anyone. Models are safetensors and JSON: no pickle, no code of
theirs is run. An archive cannot have anything fetched without --allow-download. Lengths are checked
before memory is taken; --max-output refuses longer content before it is decoded. Without a model
an archive says little: its size, kinds and lengths of frames (llmzip info).""",
    "exit-codes": """\
0    done
1    something about the data or the machine is wrong; one line on stderr for each input
2    wrong usage
130  interrupted, or terminated; no partial file is left""",
}


def show(arguments: argparse.Namespace) -> None:
    topic = arguments.topic
    if topic is None:
        print("Topics, for llmzip help TOPIC:")
        for name, text in TOPICS.items():
            print(f"  {name:<12}{text.splitlines()[0]}")
        print("llmzip --help lists commands, llmzip help COMMAND tells of one.")
    elif topic in TOPICS:
        print(TOPICS[topic])
    else:
        raise UsageError(f"no topic {topic!r}; there are {', '.join(TOPICS)}")
