#!/usr/bin/env python3
"""`ffnskip convert`, under the name that llama.cpp's converter has."""

import sys

from ffnskip_cpp.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
