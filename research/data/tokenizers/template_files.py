"""The chat templates beside a tokenizer: a default one and, in some models, further ones by name,
such as "tool_use" for conversations with tools.

transformers has written them in four ways: a file, further files in a folder, an entry of
tokenizer_config.json (a text, or a list of names and texts), and a JSON file of image models.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.data.tokenizers.side_files import CONFIG
from research.files import write_text

FILE, FOLDER, JSON_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
DEFAULT = "default"


def read_templates(folder: Path) -> dict[str, str]:
    """The sources of the templates in a folder by name, {} without any. As in transformers, files
    of their own go before tokenizer_config.json. ValueError for what is no template."""
    try:
        files = [folder / name for name in (FILE, CONFIG, JSON_FILE)]
        files += sorted((folder / FOLDER).glob("*.jinja"))
        return templates_of(
            {
                file.relative_to(folder).as_posix(): file.read_bytes()
                for file in files
                if file.is_file()
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the chat template in {folder} cannot be read: {error}") from None


def templates_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """`read_templates` of the contents of a folder's files, by their names in it."""
    found = {name: Path(name).stem for name in files if name.startswith(f"{FOLDER}/")}
    found |= {FILE: DEFAULT} if FILE in files else {}
    if found:
        return {name: files[file].decode() for file, name in found.items()}
    for file in (CONFIG, JSON_FILE):
        if file in files and (templates := _named(json.loads(files[file]).get("chat_template"))):
            return templates
    return {}


def template_fields(folder: Path) -> dict[str, Any]:
    """The templates of a folder as the fields of a `Tokenizer`."""
    templates = read_templates(folder)
    return {"chat_template": templates.pop(DEFAULT, None), "templates": templates}


def write_templates(folder: Path, default: str | None, others: Mapping[str, str]) -> None:
    """Writes templates as `read_templates` and transformers read them, each atomically."""
    if default is not None:
        write_text(folder / FILE, default)
    for name, source in others.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_text(folder / FOLDER / f"{name}.jinja", source)


def _named(value: Any) -> dict[str, str]:
    """Templates by name of an entry: one text, or a list of {"name", "template"}."""
    if value is None:
        return {}
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}
    templates = value if isinstance(value, Mapping) else {DEFAULT: value}
    for name, source in templates.items():
        if not isinstance(source, str):
            raise ValueError(f"{name} is a {type(source).__name__}, wanted text")
        # A name becomes that of a file.
        if not name or name != Path(name).name:
            raise ValueError(f"{name!r} is no name of a template")
    return dict(templates)
