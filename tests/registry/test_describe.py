import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from miudo.config import ModelConfig
from miudo.records import Artefact, Measurement, Record
from miudo.registry.describe import describe, description_text, lineage_lines
from miudo.tensors import StoredTensor, parameter_count, tensor_table

CONFIG = ModelConfig.uniform(
    vocab_size=64, d_model=32, n_layers=3, n_heads=2, d_ff=64, max_positions=16, eos_ids=(0,)
)


def _model(record: Record | None = None) -> Any:
    weights = {}
    for spec in tensor_table(CONFIG):
        dtype = spec.lowest
        data = np.zeros(dtype.size_bytes(spec.shape), np.uint8)
        weights[spec.name] = StoredTensor(dtype, spec.shape, data)
    return SimpleNamespace(
        config=CONFIG,
        weights=weights,
        tokenizer=None,
        chat_template=None,
        record=record,
        architecture="llama",
        path=None,
    )


def _record(name: str, *parents: Record, **rest: Any) -> Record:
    return Record(verb="train", name=name, parents=parents, created="2026-01-01", **rest)


def test_numbers_equal_a_recount() -> None:
    facts = describe(_model())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["parameters"] == parameter_count(CONFIG)
    assert sum(d["values"] for d in facts["dtypes"].values()) == facts["parameters"]
    assert sum(d["bytes"] for d in facts["dtypes"].values()) == facts["weights_bytes"]
    assert facts["bits_per_weight"] == 8 * facts["weights_bytes"] / facts["parameters"]
    assert set(facts["dtypes"]) == {"F32", "Q8_0"}
    assert len(facts["layers"]) == 3


def test_the_text_groups_equal_layers_and_names_what_is_absent() -> None:
    text = description_text(_model())
    assert "3 x 2 heads of 16, 2 for keys, d_ff 64" in text
    for line in ("tokenizer        none", "licence          not stated", "record           none"):
        assert line in text


def test_lineage_is_a_tree_with_sources_measurements_and_notes() -> None:
    data = _record("data", inputs=(Artefact("text", "a.txt", "f" * 64),), notes=("synthetic",))
    teacher = _record("teacher", data, seed=3)
    measured = (Measurement("energy", 12.0, "J", "guess", estimate=True),)
    student = _record("student", teacher, data, measurements=measured)
    assert lineage_lines(student) == [
        "student - train, 2026-01-01",
        "│  energy ~12 J (guess)",
        "├─ teacher - train, 2026-01-01, seed 3",
        "│  └─ data - train, 2026-01-01",
        "│        from text a.txt ffffffffffff",
        "│        note: synthetic",
        "└─ data - train, 2026-01-01",
        "      from text a.txt ffffffffffff",
        "      note: synthetic",
    ]


def test_of_many_notes_a_few_are_told_and_the_rest_counted() -> None:
    data = _record("data", notes=tuple(f"dropped {i}" for i in range(5)))
    assert lineage_lines(data)[1:] == [
        *(f"   note: dropped {i}" for i in range(3)),
        "   and 2 notes more (--json has them)",
    ]


def test_the_record_is_in_both_forms() -> None:
    record = _record("mine", licence="Apache-2.0")
    assert describe(_model(record))["record"] == record.to_json()
    text = description_text(_model(record))
    assert "licence          Apache-2.0" in text
    assert "lineage\nmine - train" in text
