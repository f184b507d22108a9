"""The fresh interpreter of `rddlib.bench.process.in_child`."""

import importlib
import json
import sys

module, _, function = sys.argv[1].partition(":")
print(json.dumps(getattr(importlib.import_module(module), function)(json.loads(sys.argv[2]))))
