"""Files → bits per byte, MB/s, memory and energy of llmzip beside other compressors.

`codecs`: what is compared, each in processes of its own. `energy`: joules, where the machine
tells. `measure`: files and models → a report. `report`: a report → tables, CSV, plot.
"""

from llmzip.bench.measure import circumstances, compare
from llmzip.bench.report import csv_of, plot, summary, table

__all__ = ["circumstances", "compare", "csv_of", "plot", "summary", "table"]
