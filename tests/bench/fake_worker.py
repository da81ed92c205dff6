"""A worker without a model: answers from a script, or misbehaves. ``python fake_worker.py KIND OPTIONS_JSON``.

Options: `script`: command -> what it answers with ({"value": ...}), or a word: "die", "hang", "garbage", "refuse",
"talk"; `log`: a file that gets a line for each command; `child`: True to start a process of its own at once.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path


def answer(command, options):
    told = options["script"].get(command["do"], {})
    if told == "die":
        sys.stderr.write("first line\nout of memory, says the fake\n")
        sys.exit(3)
    if told == "hang":
        threading.Event().wait()
    if told == "garbage":
        return "this is no JSON"
    if told == "refuse":
        return json.dumps({"ok": False, "error": "cannot do that", "kind": "UsageError"})
    return json.dumps({"ok": True, "value": 1.0, **told})


def main(options):
    if options.get("child"):
        subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    for line in sys.stdin:
        command = json.loads(line)
        if options.get("log"):
            with Path(options["log"]).open("a") as log:
                log.write(json.dumps({"who": options.get("who"), **command}) + "\n")
        sys.stdout.write(answer(command, options) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
