"""Google Drive as the place of a run in Colab, whose own disk goes with the session."""

FOLDER = "/content/drive"


def on_drive(workdir: str) -> str:
    """The folder for `workdir` on the user's Drive, graft/`workdir`, after Colab has mounted it and
    asked for leave. A run there stays, and the notebook resumes it. ValueError outside Colab.

        workdir = on_drive("runs/qlora")
    """
    try:
        from google.colab import drive
    except ImportError:
        raise ValueError(
            "keep_on_drive is for Colab, and this is another notebook; leave it off: the run stays "
            f"in {workdir}"
        ) from None
    drive.mount(FOLDER)
    return f"{FOLDER}/MyDrive/graft/{workdir}"
