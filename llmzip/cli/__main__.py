"""python -m llmzip.cli"""

import sys

from llmzip.cli import main

sys.exit(main())
