import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision")

from weightcast_lab.errors import LabError
from weightcast_lab.tasks import DataSource, cifar10, cifar10_files, make_task
from weightcast_lab.tasks.cifar10_files import BATCHES, BINARY, BINARY_FOLDER, CLASSES, JPEG

TRAINING, VALIDATION = 50, 10


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A CIFAR-10 of 50 and 10 images, and a cache of its own."""
    for module in (cifar10, cifar10_files):
        monkeypatch.setattr(module, "TRAINING", TRAINING)
        monkeypatch.setattr(module, "VALIDATION", VALIDATION)
    monkeypatch.setenv("WEIGHTCAST_CACHE", str(tmp_path / "cache"))


def records(count, seed=0):
    """Smooth images (so that JPEG keeps them nearly), classes in turn."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 3, 1), np.uint8)
    pixels = np.broadcast_to(colours, (count, 3, 1024)).reshape(count, -1)
    classes = (np.arange(count) % 10).astype(np.uint8)
    return np.concatenate([classes[:, None], pixels], 1)


def batch_files(training=TRAINING):
    train, test = records(training), records(VALIDATION, 1)
    parts = [*np.array_split(train, 5), test]
    return {name: part.tobytes() for name, part in zip(BATCHES, parts, strict=True)}


def pack(path, files, mode):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def jpegs(training=TRAINING):
    files = {}
    for kind, rows in (("train", records(training)), ("test", records(VALIDATION, 1))):
        for number, row in enumerate(rows):
            buffer = io.BytesIO()
            image = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            image.save(buffer, "JPEG", quality=95)
            files[f"{kind}/{CLASSES[row[0]]}/{number:04}.jpg"] = buffer.getvalue()
    return files


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def task(folder, **options):
    options = {"training_images": TRAINING, "validation_images": VALIDATION} | options
    return make_task("cifar10", DataSource(folder), network="vgg11", width=0.25, **options)


@pytest.fixture
def binary_folder(tmp_path):
    return put(tmp_path / "data", {f"{BINARY_FOLDER}/{n}": d for n, d in batch_files().items()})


def test_the_binary_archive_and_its_folder_hold_the_same(tmp_path, monkeypatch, binary_folder):
    path = pack(
        tmp_path / BINARY, {f"{BINARY_FOLDER}/{n}": d for n, d in batch_files().items()}, "w:gz"
    )
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10_files, "BINARY_SHA256", digest)
    same = [task(p) for p in (tmp_path, path, binary_folder, binary_folder / BINARY_FOLDER)]
    assert {t.facts["data"] for t in same} == {"CIFAR-10"}
    assert len({t.facts["data sha256"] for t in same}) == 1
    images, classes = same[0].training
    assert (images.shape, images.dtype) == ((TRAINING, 32, 32, 3), torch.uint8)
    assert classes.bincount().tolist() == [5] * 10
    colours = {tuple(row[1::1024]) for row in records(TRAINING)}
    assert {tuple(image[3, 4].tolist()) for image in images} == colours


def test_jpegs_are_called_lossy_and_are_nearly_the_same(tmp_path, binary_folder):
    folder = task(put(tmp_path / "jpegs", jpegs()))
    path = pack(tmp_path / JPEG, {f"./{n}": d for n, d in jpegs().items()}, "w:xz")
    archive = task(path)
    assert folder.facts == archive.facts
    assert folder.facts["data"] == "CIFAR-10 (lossy JPEG)"
    assert folder.title.startswith("CIFAR-10 (lossy JPEG), VGG-11 at width 0.25")
    exact = {int(c): set() for c in range(10)}
    for image, label in zip(*task(binary_folder).training, strict=True):
        exact[int(label)].add(tuple(image[0, 0].tolist()))
    for image, label in zip(*folder.training, strict=True):
        near = [
            max(abs(a - b) for a, b in zip(image[0, 0].tolist(), e, strict=True))
            for e in exact[int(label)]
        ]
        assert min(near) <= 4


def test_decoded_once_and_again_if_the_cache_is_damaged(tmp_path, binary_folder, monkeypatch):
    first = task(binary_folder).facts
    decode = cifar10_files._decode
    monkeypatch.setattr(cifar10_files, "_decode", lambda archive: pytest.fail("decoded again"))
    assert task(binary_folder).facts == first
    monkeypatch.setattr(cifar10_files, "_decode", decode)
    (cached,) = (tmp_path / "cache").glob("*.npy")
    for damage in (b"", cached.read_bytes()[:-5], cached.read_bytes()[:-1] + b"\xff"):
        cached.write_bytes(damage)
        assert task(binary_folder).facts == first


def test_crops_and_reflections_are_those_of_a_loop_over_pixels(binary_folder):
    whole = task(binary_folder)
    whole.training = (
        torch.randint(0, 256, (TRAINING, 32, 32, 3), dtype=torch.uint8),
        whole.training[1],
    )
    batches = whole.batches(16, torch.Generator().manual_seed(3))
    assert [len(b[0]) for b in batches] == [16, 16, 16, 2]
    assert sorted(torch.cat([b[0] for b in batches]).tolist()) == list(range(TRAINING))
    seen = []

    class Seer(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 10)

    whole.loss(Seer(), batches[0], None)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor(cifar10.MEAN), torch.tensor(cifar10.STD)
    for position, (index, top, left, mirrored) in enumerate(zip(*batches[0], strict=True)):
        expected = torch.zeros(3, 32, 32)
        for row in range(32):
            for column in range(32):
                y = int(top) + row - 4
                x = int(left) + (31 - column if mirrored else column) - 4
                if 0 <= y < 32 and 0 <= x < 32:
                    expected[:, row, column] = whole.training[0][index, y, x] / 255
        torch.testing.assert_close(
            seen[0][position],
            (expected - mean[:, None, None]) / std[:, None, None],
            rtol=1e-4,
            atol=1e-4,
        )
    again = whole.batches(16, torch.Generator().manual_seed(3))
    other = whole.batches(16, torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(batches[0], again[0], strict=True))
    assert not torch.equal(batches[0][0], other[0][0])


def test_a_single_last_image_is_left_out(binary_folder):
    assert [len(b[0]) for b in task(binary_folder).batches(7, torch.Generator())] == [7] * 7


def test_a_part_has_all_classes_equally_and_lies_in_the_whole(binary_folder):
    part = task(binary_folder, training_images=20)
    assert part.training[1].bincount().tolist() == [2] * 10
    whole = {tuple(image[0, 0].tolist()) for image in task(binary_folder).training[0]}
    assert {tuple(image[0, 0].tolist()) for image in part.training[0]} <= whole


def test_evaluation_is_the_mean_over_all_images(binary_folder, monkeypatch):
    monkeypatch.setattr(cifar10, "EVALUATION_BATCH", 4)
    whole = task(binary_folder)
    torch.manual_seed(0)
    model = whole.build_model().eval()
    with torch.no_grad():
        loss, accuracy = whole.evaluate(model)
        images = whole.validation[0].permute(0, 3, 1, 2) / 255
        scaled = (images - torch.tensor(cifar10.MEAN).view(3, 1, 1)) / torch.tensor(
            cifar10.STD
        ).view(3, 1, 1)
        logits = model(scaled)
    labels = whole.validation[1]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), 1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def without_last(files):
    name = next(n for n in reversed(files) if n.startswith("train"))
    return {n: d for n, d in files.items() if n != name}


def two_of_one_class(files):
    name = next(n for n in files if n.startswith("train/cat"))
    return without_last(files) | {name.replace(".jpg", "b.jpg"): files[name]}


def broken_picture(files):
    name = next(n for n in files if n.startswith("train/cat"))
    return files | {name: files[name][:100]}


def a_huge_picture(files, side=65_500):
    """Its header says so; there is no more of it."""
    name = next(n for n in files if n.startswith("train/cat"))
    data = files[name]
    place = data.index(b"\xff\xc0") + 5  # start of frame: length, precision, height, width
    size = side.to_bytes(2, "big")
    return files | {name: data[:place] + 2 * size + data[place + 4 :]}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (a_huge_picture, "is not of 32x32 pixels"),
        (lambda files: a_huge_picture(files, 11_000), "is not of 32x32 pixels"),
        (lambda files: a_huge_picture(files, 33), "is not of 32x32 pixels"),
        (without_last, "has 49 training images instead of 50"),
        (two_of_one_class, "training images of class"),
        (broken_picture, "is damaged"),
        (lambda files: files | {"train/whale/1.jpg": b""}, "class 'whale'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, damage, sentence):
    with pytest.raises(LabError, match=sentence):
        task(put(tmp_path / "jpegs", damage(jpegs())))
    assert not list(tmp_path.glob("cache/*"))


def test_what_is_wrong_with_an_archive_is_said(tmp_path, monkeypatch, binary_folder):
    path = tmp_path / BINARY
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(LabError, match="not the published archive, or truncated"):
        task(path)
    whole = pack(tmp_path / JPEG, jpegs(), "w:xz").read_bytes()
    for data in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / JPEG).write_bytes(data)
        with pytest.raises(LabError, match=r"damaged|instead of 50"):
            task(tmp_path / JPEG)
    (binary_folder / BINARY_FOLDER / BATCHES[2]).unlink()
    with pytest.raises(LabError, match=r"data_batch_3\.bin is missing"):
        task(binary_folder)
    (binary_folder / BINARY_FOLDER / BATCHES[2]).write_bytes(b"123")
    with pytest.raises(LabError, match=r"data_batch_3\.bin.*truncated"):
        task(binary_folder)


def test_files_of_gigabytes_are_not_read(tmp_path, binary_folder):
    batch = binary_folder / BINARY_FOLDER / BATCHES[0]
    os.truncate(batch, 8 << 30)  # sparse: it takes no room
    with pytest.raises(LabError, match=r"data_batch_1\.bin.* has 8,589,934,592 bytes, too many"):
        task(binary_folder)
    picture = next(name for name in jpegs() if name.startswith("test/dog"))
    archive = pack(tmp_path / JPEG, jpegs() | {picture: bytes(200_000)}, "w:xz")
    with pytest.raises(LabError, match="has 200,000 bytes, too many"):
        task(archive)


def test_other_mistakes_are_one_sentence(tmp_path, binary_folder, monkeypatch):
    with pytest.raises(LabError, match="--download"):
        make_task("cifar10", DataSource())
    with pytest.raises(LabError, match="There is no CIFAR-10 in"):
        task(tmp_path / "nothing")
    with pytest.raises(LabError, match="multiple of 10"):
        task(binary_folder, training_images=15)
    with pytest.raises(LabError, match="more than the 50 training images"):
        task(binary_folder).batches(51, torch.Generator())
    with pytest.raises(LabError, match="did you mean 'resnet34'"):
        make_task("cifar10", DataSource(binary_folder), network="resnet43")
    monkeypatch.setenv("WEIGHTCAST_CACHE", str(binary_folder / BINARY_FOLDER / BATCHES[0]))
    with pytest.raises(LabError, match="cannot be"):
        task(binary_folder)


def test_download_checks_the_hash_and_says_what_to_do(tmp_path, monkeypatch):
    path = pack(
        tmp_path / "elsewhere.tar.gz",
        {f"{BINARY_FOLDER}/{n}": d for n, d in batch_files().items()},
        "w:gz",
    )
    import hashlib

    def fetch(url, output_file, pooch):
        assert url == cifar10_files.BINARY_URL
        Path(output_file).write_bytes(path.read_bytes())

    retrieve = cifar10_files.pooch.retrieve
    monkeypatch.setattr(
        cifar10_files.pooch, "retrieve", lambda *a, **k: retrieve(*a, **k, downloader=fetch)
    )
    source = DataSource(download=True)
    with pytest.raises(LabError, match="fetch it yourself"):
        make_task("cifar10", source)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10_files, "BINARY_SHA256", digest)
    sizes = {"training_images": TRAINING, "validation_images": VALIDATION}
    assert make_task("cifar10", source, network="vgg11", width=0.25, **sizes)


@pytest.mark.skipif("WEIGHTCAST_DATA" not in os.environ, reason="needs WEIGHTCAST_DATA=FOLDER")
def test_the_real_images(monkeypatch):
    for module in (cifar10, cifar10_files):
        monkeypatch.setattr(module, "TRAINING", 50_000)
        monkeypatch.setattr(module, "VALIDATION", 10_000)
    real = make_task("cifar10", DataSource(Path(os.environ["WEIGHTCAST_DATA"])))
    for part, count in ((real.training, 5_000), (real.validation, 1_000)):
        assert part[1].bincount().tolist() == [count] * 10
    mean = real.training[0].float().mean((0, 1, 2)) / 255
    assert mean.tolist() == pytest.approx(cifar10.MEAN, abs=2e-3)
