#!/usr/bin/env python3
"""Train an embedded model: one command from a folder of texts to a model and its report.

    python scripts/train_model.py --config scripts/configs/small.toml --corpus DIR --work DIR \\
        --budget 2h --dev DIR --results results/training/small
    accelerate launch scripts/train_model.py …        # several GPUs
"""

import sys

from llmzip.train.run import main

if __name__ == "__main__":
    sys.exit(main())
