"""Files → bits per byte, MB/s, memory and energy of llmzip beside other compressors.

`codecs`: the compressors, each in processes of its own. `energy`: joules by the machine's
counters. `comparison`: files and models → a report. `record`: where a report comes from, and its
JSON. `report`: a report → tables, CSV. `plots`: figures of one style.
"""

from llmzip.bench.comparison import compare
from llmzip.bench.plots import plot
from llmzip.bench.record import provenance, write_report
from llmzip.bench.report import csv_of, summary, table

__all__ = ["compare", "csv_of", "plot", "provenance", "summary", "table", "write_report"]
