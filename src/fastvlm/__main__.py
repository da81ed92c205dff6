"""``python -m fastvlm`` is the command ``fastvlm``."""

from fastvlm.cli.main import run

if __name__ == "__main__":
    run()
