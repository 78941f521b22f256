"""Rows of TPUs."""

from research.devices.device import GB, GBIT, GIB, Device, Slices, tera

# Peaks and bandwidth: the "System architecture" table of each generation in Google's documentation,
# cloud.google.com/tpu/docs/v2, v3, v4, v5e, v5p, v6e and tpu7x. int8 of v5p: cloud.google.com/blog,
# "Introducing Cloud TPU v5p and AI Hypercomputer", 6 December 2023. float8 of v5p and v6e: the
# comparison table of tpu7x. A row is one device: v2, v3 and tpu7x show each of a chip's two
# TensorCores as a device (their figures are halved), v4 and v5p join them into one ("megacore").
#
# Memory: what libtpu 0.0.42 says it has when a program wants more ("exceeds available HBM
# (15.75G)"), which is the sheet's 16, 32, 95, 192 and 32 GiB less what the runtime keeps.
#
# Links: "bidirectional inter-chip interconnect bandwidth per chip" of the same pages, for v5e 400
# GB/s, v5p 1200, v6e 800 and tpu7x 1200, counts both directions of 4 or 6 links; v4 has six of 50
# GB/s (arXiv:2304.01433, table 4). They are the one-way figures of
# jax-ml.github.io/scaling-book/tpus within a tenth. Network cards: 2 x 100 Gbit/s for 8 chips
# (v5e), 50 Gbit/s a chip (v5p), 100 (v6e, tpu7x), of the same pages; v4 is taken to have what v5p
# has, the 25 GB/s a host of the scaling book. A chip's share assumes that all chips of a host talk
# at once, as they do in a collective over slices.
TPUS = (
    Device("TPU v2", 700 * GB / 2, tera(bfloat16=45 / 2), torus=2),
    Device("TPU v3", 900 * GB / 2, tera(bfloat16=123 / 2), torus=2),
    Device(
        "TPU v4",
        1200 * GB,
        tera(bfloat16=275, int8=275),
        torus=3,
        target="v4",
        memory=int(30.75 * GIB),
        slices=Slices(devices=1, link=50 * GB, datacenter=50 * GBIT, most=4096),
    ),
    Device(
        "TPU v5 lite",
        819 * GB,
        tera(bfloat16=197, int8=393),
        aliases=("TPU v5e",),
        torus=2,
        target="v5e",
        memory=int(15.75 * GIB),
        slices=Slices(devices=1, link=50 * GB, datacenter=25 * GBIT, most=256),
    ),
    Device(
        "TPU v5",
        2765 * GB,
        tera(bfloat16=459, int8=918, float8=459),
        aliases=("TPU v5p",),
        torus=3,
        target="v5p",
        memory=int(95.74 * GIB),
        slices=Slices(devices=1, link=100 * GB, datacenter=50 * GBIT, most=6144),
    ),
    Device(
        "TPU v6 lite",
        1638 * GB,
        tera(bfloat16=918, int8=1836, float8=918),
        aliases=("TPU v6e",),
        torus=2,
        target="v6e",
        memory=int(31.25 * GIB),
        slices=Slices(devices=1, link=100 * GB, datacenter=100 * GBIT, most=256),
    ),
    Device(
        "TPU7x",
        7380 * GB / 2,
        tera(bfloat16=2307 / 2, float8=4614 / 2),
        variants=("TPU7",),  # the same chip, its two TensorCores as one device
        torus=3,
        target="tpu7x",
        memory=int(94.75 * GIB),
        slices=Slices(devices=2, link=100 * GB, datacenter=100 * GBIT, most=9216),
    ),
)
