# Tasks for developers; needs https://just.systems

# Everything that tests, lint and types need, into .venv-dev
setup:
    python3 -m venv .venv-dev
    .venv-dev/bin/pip install -q -e ".[cpu,dev]"

# What CI runs, in the environment of `setup`
check:
    .venv-dev/bin/ruff format --check .
    .venv-dev/bin/ruff check .
    .venv-dev/bin/mypy
    .venv-dev/bin/lint-imports
    .venv-dev/bin/pytest

# Train and export the packaged theatre bundle; about 15 minutes on 2 cores
theatre:
    .venv-dev/bin/edgeclf train theatre -o build/theatre
    .venv-dev/bin/edgeclf export build/theatre -o edgeclf/bundles/theatre.edgeclf

# Train and export the packaged ucf101_8 bundle from a folder with its manifest.csv
ucf101_8 data:
    .venv-dev/bin/edgeclf train lite0-gru {{data}}/manifest.csv -o build/ucf101_8
    .venv-dev/bin/edgeclf export build/ucf101_8 -o edgeclf/bundles/ucf101_8.edgeclf
