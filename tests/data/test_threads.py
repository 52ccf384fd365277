import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

from cvpipe.data import threads as threads_module
from cvpipe.data.images import DecodeRule, read_image, resize_image
from cvpipe.data.threads import load_batches, load_sizes, ordered_map
from cvpipe.errors import InputError

THREADS = [1, 2, 8]


@pytest.fixture(autouse=True)
def _no_thread_is_left_over():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def sleep_longest_first(item: int) -> int:
    time.sleep((9 - item) / 1000)
    return item * item


@pytest.mark.parametrize("threads", THREADS)
def test_results_come_in_order_however_long_they_take(threads):
    assert list(ordered_map(sleep_longest_first, range(10), threads)) == [n * n for n in range(10)]
    assert list(ordered_map(sleep_longest_first, [], threads)) == []


@pytest.mark.parametrize("threads", THREADS)
def test_look_ahead_is_bounded(threads):
    taken = started = 0
    lock = threading.Lock()

    def items():
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    def work(number):
        nonlocal started
        with lock:
            started += 1
        return number

    for consumed, result in enumerate(ordered_map(work, items(), threads), start=1):
        assert result == consumed - 1
        time.sleep(0.001)  # a slow consumer, so that the workers could run away
        assert taken == min(50, consumed + threads + 1)
        assert started <= taken
    assert consumed == taken == started == 50


@pytest.mark.parametrize("threads", [2, 4])
def test_as_many_items_at_a_time_as_threads(threads):
    # Nobody passes the barrier alone: with fewer workers it would break.
    barrier = threading.Barrier(threads, timeout=10)

    def work(item):
        barrier.wait()
        return item

    assert list(ordered_map(work, range(2 * threads), threads)) == list(range(2 * threads))


@pytest.mark.parametrize("threads", THREADS)
def test_an_exception_comes_at_its_turn_and_stops_the_work(threads):
    started = []

    def work(number):
        started.append(number)
        if number == 5:
            raise KeyError(number)
        return number

    results = []
    with pytest.raises(KeyError, match="5"):
        results.extend(ordered_map(work, range(1000), threads))
    assert results == [0, 1, 2, 3, 4]
    assert max(started) <= 5 + threads + 1


def test_results_before_an_exception_arrive():
    results = ordered_map(lambda number: 6 // number, [3, 2, 1, 0, 1], 2)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_exception_of_the_items_passes():
    def items():
        yield 1
        raise KeyError("items")

    with pytest.raises(KeyError, match="items"):
        list(ordered_map(abs, items(), 2))


def test_a_consumer_may_stop_early():
    started = []

    def work(number):
        started.append(number)
        time.sleep(0.05)
        return number

    results = ordered_map(work, range(1000), 1)
    assert next(results) == 0
    results.close()
    # 1 was under way; 2 was waiting and is not begun any more.
    assert started in ([0], [0, 1])


# Images.


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Seven noisy images of different sizes, some higher than wide."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for number in range(7):
        pixels = rng.integers(0, 256, (20 + 9 * number, 50 - 3 * number, 3), dtype=np.uint8)
        paths.append(root / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (10, [7]), (1, [1] * 7)]
)
def test_batches(paths, threads, batch_size, sizes):
    batches = list(load_batches(paths, (12, 16), DecodeRule(fit="crop"), batch_size, threads))
    assert [batch.shape for batch in batches] == [(size, 12, 16, 3) for size in sizes]
    expected = np.stack([resize_image(read_image(path), (12, 16), "crop") for path in paths])
    assert batches[0].dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate(batches), expected)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_several_sizes_come_from_one_decode(paths, threads, fit, monkeypatch):
    decoded = []

    def recording(path, rule):
        decoded.append(path)
        return read_image(path, rule)

    monkeypatch.setattr(threads_module, "read_image", recording)
    sizes = [(12, 16), (14, 19), (7, 5)]
    batches = list(load_sizes(paths, sizes, DecodeRule(fit=fit), 3, threads))
    assert sorted(decoded) == paths
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert [len(arrays[0]) for arrays in batches] == [3, 3, 1]
    for size, arrays in zip(sizes, zip(*batches, strict=True), strict=True):
        expected = np.stack([resize_image(read_image(path), size, fit) for path in paths])
        np.testing.assert_array_equal(np.concatenate(arrays), expected)


def test_no_paths_no_batches():
    assert list(load_batches([], (12, 16), DecodeRule(), 3, 2)) == []
    assert list(load_sizes([], [(12, 16), (1, 1)], DecodeRule(), 3, 2)) == []


@pytest.mark.parametrize("threads", THREADS)
def test_an_unreadable_image_is_named(paths, threads, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:100])
    files = [*paths[:4], broken, *paths]
    batches = load_batches(files, (12, 16), DecodeRule(fit="pad"), 2, threads)
    assert [len(next(batches)), len(next(batches))] == [2, 2]
    with pytest.raises(InputError, match=re.escape(f"cannot read the image {str(broken)!r}: ")):
        next(batches)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_chunks_change_nothing_but_who_works(threads, chunk):
    workers = {}

    def work(number):
        workers[number] = threading.get_ident()
        return number * number

    assert list(ordered_map(work, iter(range(10)), threads, chunk)) == [n * n for n in range(10)]
    for start in range(0, 10, chunk):
        assert len({workers[n] for n in range(start, min(10, start + chunk))}) == 1
