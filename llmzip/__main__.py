"""python -m llmzip"""

import sys

from llmzip.cli import main

sys.exit(main())
