"""A training set out of decisions: rejected left out, corrected corrected, the rest as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from tests.training.review.conftest import INFO, bytes_of, discs, grown
from wsiseg.cli.main import main
from wsiseg.training.data.build import questions
from wsiseg.training.data.derived import stroma_of
from wsiseg.training.data.store import QuadrupletStore, write_quadruplets
from wsiseg.training.review.apply import apply_review
from wsiseg.training.review.session import Review

Person = Callable[[str], Review]


def applied(store: Path, name: str | None = None) -> QuadrupletStore:
    return apply_review(QuadrupletStore.open(store), store.with_name(f"by {name}.zarr"), name=name)[0]


def asked(store: QuadrupletStore, image: str) -> dict[str, str]:
    return {q.concept: q.reasoning for q in store.quadruplets if store.records[q.image].name == image}


def test_one_persons_decisions_become_a_store(person: Person, store: Path, tmp_path: Path) -> None:
    review = person("Dr. X")
    review.correct_mask(0, bytes_of(grown(0)))
    review.decide(0, {"chain": "corrected"}, "Three glands. They are outlined.")
    review.decide(1, {"mask": "rejected"})  # there may be a cat
    review.decide(2, {"mask": "rejected", "chain": "accepted"})
    review.decide(4, {"mask": "accepted", "chain": "rejected"})
    review.correct_mask(6, bytes_of(grown(3)))  # and nothing said of its chain
    review.correct_mask(9, bytes_of(grown(4)))  # a cat, drawn
    review.decide(9, {"chain": "corrected"}, "A cat. It is outlined.")
    done = CliRunner().invoke(main, ["data", "review", str(store), "--apply", str(tmp_path / "out.zarr")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "12 questions 4 left out and 6 seen by nobody, 2 chains corrected" in done.stderr
    new, old = QuadrupletStore.open(tmp_path / "out.zarr"), QuadrupletStore.open(store)
    samples = {record.name: new.sample(i) for i, record in enumerate(new.records)}
    np.testing.assert_array_equal(samples["set/0"].layers["gland"], grown(0))
    assert asked(new, "set/0") == {"gland": "Three glands. They are outlined."}
    assert (samples["set/0"].absent, samples["set/1"].absent) == ((), ("cat",))
    assert samples["set/1"].present == ()  # unknown from now on, neither there nor absent
    assert asked(new, "set/1").keys() == {"cat"}
    assert (samples["set/2"].present, asked(new, "set/2").keys()) == (("gland",), {"cat"})
    np.testing.assert_array_equal(samples["set/3"].layers["gland"], grown(3))
    assert asked(new, "set/3").keys() == {"cat"}  # the chain was measured off another mask
    assert samples["set/4"].present == ("gland", "cat")
    assert asked(new, "set/4")["cat"] == "A cat. It is outlined."
    assert all(q.present for q in new.quadruplets if new.records[q.image].name == "set/4")
    assert asked(new, "set/5") == asked(old, "set/5")
    np.testing.assert_array_equal(samples["set/5"].image, discs(5).image)
    assert new.sources["set"].notes == "Made up. Reviewed by Dr. X."
    # What people wrote is what training reads.
    assert {key: (c.text, c.closing, c.describer) for key, c in new.chains.items()} == {
        ("set/0", "gland"): ("Three glands. They are outlined.", "They are outlined.", "Dr. X"),
        ("set/4", "cat"): ("A cat. It is outlined.", "It is outlined.", "Dr. X"),
    }


def test_the_majority_counts_and_a_tie_is_no_majority(person: Person, store: Path) -> None:
    x, y, z = person("X"), person("Y"), person("Z")
    for review, verdict in ((x, "accepted"), (y, "rejected"), (z, "accepted")):
        review.decide(0, {"mask": verdict, "chain": "accepted"})
    x.decide(2, {"mask": "accepted"})
    y.decide(2, {"mask": "rejected"})
    # Of three masks the one that is most like the others.
    odd = np.zeros((72, 96), np.uint16)
    odd[:5, :5] = 1
    y.correct_mask(4, bytes_of(odd))
    z.correct_mask(4, bytes_of(grown(2)))
    x.decide(4, {"mask": "accepted"})
    # Of two the correction, and of two texts the later one.
    x.decide(6, {"mask": "accepted", "chain": "accepted"})
    y.correct_mask(6, bytes_of(grown(3)))
    y.decide(6, {"chain": "corrected"}, "Three glands.")
    new = applied(store)
    layers = [new.sample(i).layers for i in range(4)]
    assert [set(own) for own in layers] == [{"gland"}, set(), {"gland"}, {"gland"}]
    assert not np.array_equal(layers[2]["gland"], odd)
    np.testing.assert_array_equal(layers[3]["gland"], grown(3))
    assert asked(new, "set/3")["gland"] == "Three glands."
    assert applied(store, "Y").sample(0).present == ()
    assert applied(store, "X").sample(1).present == ("gland",)


def test_decisions_about_what_has_changed_do_not_count(person: Person, store: Path) -> None:
    person("X").decide(0, {"mask": "rejected", "chain": "rejected"})
    store.rename(store.with_name("old.zarr"))
    sample = replace(discs(0), layers={"gland": grown(0)})
    write_quadruplets(store, [sample], INFO, {sample.name: questions(sample)})
    new, counts = apply_review(QuadrupletStore.open(store), store.with_name("new.zarr"))
    assert new.sample(0).present == ("gland",)
    assert counts["changed"] == 2


def test_layers_that_were_measured_off_the_glands_go_with_them(tmp_path: Path) -> None:
    gland = discs(0).layers["gland"]
    derived = stroma_of(discs(0).image, gland).astype(np.uint16)
    drawn = derived.copy()
    drawn[:8] = 0  # by a person: not what the importer would make of the picture
    for stroma, kept in ((derived, {"gland"}), (drawn, {"gland", "stroma"})):
        sample = replace(discs(0), layers={"gland": gland, "stroma": stroma}, present=("gland", "stroma"))
        path = tmp_path / f"{len(kept)}.zarr"
        write_quadruplets(path, [sample], INFO, {sample.name: questions(sample)})
        review = Review(QuadrupletStore.open(path), "X")
        review.correct_mask([q.concept for q in review.questions].index("gland"), bytes_of(grown()))
        assert set(applied(path).sample(0).layers) == kept
        path.rename(tmp_path / f"done {len(kept)}.zarr")
        (tmp_path / "by None.zarr").rename(tmp_path / f"out {len(kept)}.zarr")


def test_without_decisions_there_is_nothing_to_apply(person: Person, store: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["data", "review", str(store), "--apply", str(tmp_path / "o.zarr")])
    assert done.exit_code == 1
    assert "holds no decision; decide with: wsiseg data review" in done.stderr
    person("X").decide(0, {"mask": "accepted"})
    done = CliRunner().invoke(main, ["data", "review", str(store), "--apply", str(tmp_path / "o.zarr"), "--name", "Y"])
    assert "holds no decision by Y" in done.stderr
    assert not (tmp_path / "o.zarr").exists()
