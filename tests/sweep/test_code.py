"""The digest of the code is git's name of the tree."""

import subprocess

from research.sweep.code import tree_digest


def test_it_is_the_tree_of_a_commit_and_sees_what_is_not_committed(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    folder = tmp_path / "research"
    for name, text in {"a.py": "1", "a/b.py": "2", "a-b.py": "", "run.sh": "#!"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("a.py")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=a"]):
        subprocess.run([*git, *command], check=True)
    named = subprocess.run(
        [*git, "rev-parse", "HEAD:research"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # What imports and editors leave.
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    (folder / "empty").mkdir()
    assert tree_digest(folder).hex() == named
    (folder / "a" / "b.py").write_text("3")
    assert tree_digest(folder).hex() != named
