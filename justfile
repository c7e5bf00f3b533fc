# Tasks for developers; needs https://just.systems

# Everything that tests, lint and types need, into .venv-dev
setup:
    python3 -m venv .venv-dev
    .venv-dev/bin/pip install -q -e ".[cpu,dev]"

# What CI runs in the environment of `setup`; .ci/run is the whole of it
check:
    .venv-dev/bin/ruff format --check .
    .venv-dev/bin/ruff check .
    .venv-dev/bin/mypy
    .venv-dev/bin/lint-imports
    .venv-dev/bin/pytest

# Train and export the packaged bundle `theatre`; about 15 minutes on 2 cores
theatre:
    .venv-dev/bin/edgeclf train theatre -o build/theatre
    .venv-dev/bin/edgeclf export build/theatre -o edgeclf/bundles/theatre.edgeclf

# Train and export the packaged bundle `ucf101_8` with `fight`; data holds the folders ucf101_8, ucf101_avi and surv_fight
ucf101_8 data:
    .venv-dev/bin/edgeclf train lite0-motion {{data}}/ucf101_8/manifest.csv -o build/ucf101_8 --about docs/models/ucf101_8.json
    .venv-dev/bin/edgeclf evaluate build/ucf101_8 {{data}}/ucf101_avi/manifest.csv --record ucf101_avi
    .venv-dev/bin/edgeclf train lite0-motion {{data}}/surv_fight/manifest.csv -o build/fight --about docs/models/fight.json --config docs/models/fight.toml --folds 8 --repeats 5 --over-all
    .venv-dev/bin/edgeclf export build/ucf101_8 -o edgeclf/bundles/ucf101_8.edgeclf --also build/fight
