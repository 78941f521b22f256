# %% [markdown]
# # Pictures and sound
#
# What a model gets of a picture and of a sound; then a vision transformer and a small text model from scratch, which learn together which name belongs to which picture. It calls the library and defines nothing.
#
# On Colab: choose a runtime with a GPU or TPU if you like, fill in the fields, and run all cells. Where the first cell asks for it, restart the session once and run all cells again.

# %%
# @title Checkout and packages
repository = ''  # @param {type: "string"}
# Colab opens a notebook without its checkout: give the repository's address, and it is cloned into graft/.
import logging, os, subprocess, sys

logging.basicConfig(format='%(levelname)s %(message)s')  # warnings as commands print them

folders = [folder for folder in ('.', '..', 'graft') if os.path.exists(f'{folder}/research/train.py')]
if not folders and not repository:
    raise ValueError("no checkout is here; set repository to its address, such as https://github.com/OWNER/graft")
if not folders:
    subprocess.run(['git', 'clone', '--quiet', repository, 'graft'], check=True)
root = folders[0] if folders else 'graft'
sys.path.insert(0, os.path.abspath(root))

from research.devices import nodes, runtime
from research.downloads import requirements

print(runtime.describe())  # and what will be slow on it
print(requirements.install(root, nodes.extra()))  # for the TPU or card that this runtime has

# %% [markdown]
# Pictures are decoded by Pillow: `pip install 'graft-research[media]'`, which Colab has. Empty fields take 1,636 emoji with their names, of which whole groups are held out, and a sound that is made here.

# %%
# @title The run
data = ''  # @param {type: "string"}
# A folder of pictures with captions (a.png and a.txt), or a file of {"image", "text"} records.
steps = 300  # @param {type: "integer"}
sound = ''  # @param {type: "string"}
# A WAV file.
workdir = 'runs/pictures'  # @param {type: "string"}
keep_on_drive = False  # @param {type: "boolean"}
# Colab's disk goes with the session. On Drive the run stays, and this notebook resumes it.
from research.downloads.drive import on_drive

if keep_on_drive:
    workdir = on_drive(workdir)

from pathlib import Path
from configs.multimodal import get_config
from research.run.resolve import from_config

argument = 'task=contrastive' + f',data={data}' * bool(data)
argument = os.environ.get('GRAFT_NOTEBOOK_ARG', argument)  # the tests set a tiny one
config = get_config(argument)
config.train.steps = min(steps, config.train.steps)
workdir = Path(os.environ.get('GRAFT_NOTEBOOK_WORKDIR', workdir))
experiment = from_config(config)
experiment.model.image

# %% [markdown]
# Pictures that the model will not be trained on, and their names.

# %%
from IPython.display import SVG
from research.data.media.images import read_image
from research.data.sources import open_source
from research.downloads.cache import cache_directory
from research.training.raster import pictures_svg

source = open_source(experiment.data.source, cache_directory(), 'captions')
chosen = range(0, len(source.heldout), max(1, len(source.heldout) // 6))[:6]
names = [source.heldout[n]['text'] for n in chosen]
pictures = [source.heldout.media(n)[0].source for n in chosen]
SVG(pictures_svg([read_image(one).pixels for one in pictures], names))

# %% [markdown]
# What the encoder gets: all of one size, and cut into squares. Each square becomes a vector, as a token does.

# %%
from research.data.media.resize import resized

image = experiment.model.image
seen = [resized(read_image(one).pixels, image.size, image.form) for one in pictures]
patches = seen[0].reshape(image.size // image.patch, image.patch, -1, image.patch, 3).swapaxes(1, 2)
SVG(pictures_svg(list(patches.reshape(-1, image.patch, image.patch, 3)), columns=image.size // image.patch))

# %% [markdown]
# Training draws a picture and its own name together, and each picture away from the names of all others in the batch. Run the cell again to resume.

# %%
from research.train import train

train(experiment, workdir)

# %%
from research.training.metrics import read_rows
from research.training.plot import curve_svg

rows = read_rows(workdir / 'metrics.jsonl')
losses = [(row['step'], row['loss']) for row in rows if 'loss' in row]
SVG(curve_svg({'train loss': tuple(zip(*losses))}))

# %% [markdown]
# Held-out pictures: how often the own name is the nearest among a hundred, and the same with a black picture, which is chance.

# %%
evaluated = [row for row in rows if any(name.startswith('eval/') for name in row)][-1]
{name: value for name, value in evaluated.items() if '@' in name}

# %% [markdown]
# The cosines of six pictures and six names. The diagonal should be the greenest: a small model on a thousand pictures gets some of it.

# %%
from research.infer.pictures import embed_images, embed_names
from research.run.opened import open_run
from research.sweep.pictures import heat_svg

run = open_run(workdir)
of_pictures = embed_images(run.model, run.params, pictures)
of_names = embed_names(run.model, run.params, run.tokenizer, names)
rows_by_names = {
    (f'picture of {names[p]}', names[n]): float(of_pictures[p] @ of_names[n])
    for p in range(len(names)) for n in range(len(names))
}
SVG(heat_svg([f'picture of {name}' for name in names], names, rows_by_names, 'higher'))

# %% [markdown]
# A sound is one row of numbers, 16,000 a second. This one rises from 100 to 7,000 Hz and is written to a file, as most sounds come from one.

# %%
import numpy as np
from IPython.display import Audio
from scipy.io import wavfile
from scipy.signal import chirp

from research.data.media.sound import RATE, read_sound

if not sound:
    sound = workdir / 'rising.wav'
    seconds = np.arange(3 * RATE) / RATE
    wavfile.write(sound, RATE, (0.3 * 32767 * chirp(seconds, 100, 3, 7000)).astype(np.int16))
samples, notes = read_sound(Path(sound))
print(f'{len(samples) / RATE:.1f} s', *notes, sep=', ')
Audio(samples, rate=RATE)

# %% [markdown]
# What a model of speech such as Whisper gets: the energy of 80 bands of hearing, a hundred times a second. The straight rise in Hz bends, because the bands are narrow where we hear finely.

# %%
from research.data.media.mel import log_mel
from research.training.raster import spectrogram_svg

SVG(spectrogram_svg(log_mel(samples)))
