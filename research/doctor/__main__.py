"""Looks at this machine and says what works, what does not and what to type:
python -m research.doctor

    python -m research.doctor
    python -m research.doctor --json

Python, packages, JAX and its plugins, the driver, devices as JAX finds them, memory, disk, the
folder of downloads, and which extras are complete. Exit code 2 where something is wrong. Nothing is
changed and nothing is fetched.
"""

import dataclasses
import json

from absl import flags

from research import command
from research.doctor.extras import requirements
from research.doctor.findings import WRONG, Finding, diagnose
from research.doctor.machine import look
from research.downloads.requirements import outdated

JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """The command."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; the only flag is --json")
    base, extras = requirements()
    machine = look()
    findings = diagnose(machine, base)
    lacking = {name: outdated(lines, machine.version) for name, lines in extras.items()}
    if JSON.value:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"findings": rows, "extras": lacking}))
    else:
        print("\n".join(_lines(findings)))
        print("\n".join(_extra_lines(lacking)))
    return command.REFUSED if any(finding.state == WRONG for finding in findings) else command.DONE


def _lines(findings: list[Finding]) -> list[str]:
    """A line a finding, the remedy on one of its own where there is one."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<6}{finding.subject:<17}{finding.text}")
        if finding.remedy:
            lines.append(f"{'':<23}-> {finding.remedy}")
    return lines


def _extra_lines(lacking: dict[str, list[str]]) -> list[str]:
    """Which extras are complete, and what the others lack."""
    if not lacking:
        return []
    lines = ["", "extras, installed by python -m pip install 'graft-research[NAME]':"]
    for name, wanted in lacking.items():
        lines.append(f"  {name:<9}{'lacks ' + ', '.join(wanted) if wanted else 'there'}")
    return lines


if __name__ == "__main__":
    command.run(main)
