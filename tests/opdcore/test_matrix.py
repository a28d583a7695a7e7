"""The engine's matrix: every unsound cell is refused by its code, and every sound one trains."""

import pytest

from benchmarks import matrix
from benchmarks.matrix import Endpoints
from opdcore.contract.errors import BadInput
from opdcore.refusals import refuse

SERVER = {"base_url": "http://127.0.0.1:9", "model": "model"}
ENDPOINTS = Endpoints(SERVER, SERVER)
CELLS = list(matrix.cells())


def named(cell):
    return f"{cell.objective}-{cell.teacher}-{cell.sampler}-{cell.tuning}"


def test_the_matrix_is_whole():
    assert len(CELLS) == len(set(CELLS)) == 6 * 8 * 2 * 2
    assert sum(cell.refusal is not None for cell in CELLS) == 2 * 4 + 1 * 4 + 6 * 2


@pytest.mark.parametrize("cell", [one for one in CELLS if one.refusal], ids=named)
def test_an_unsound_cell_is_refused_before_anything_is_loaded(cell):
    with pytest.raises(BadInput) as caught:
        refuse(matrix.job(cell, ENDPOINTS))
    assert caught.value.info.code == cell.refusal


@pytest.mark.parametrize("cell", [one for one in CELLS if not one.refusal], ids=named)
def test_a_sound_cell_is_not_refused(cell):
    refuse(matrix.job(cell, ENDPOINTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [one for one in CELLS if not one.refusal and not one.is_served], ids=named
)
def test_a_sound_cell_trains(cell):
    assert matrix.tried(cell, Endpoints())["sound"]
