"""What the report of the observing benchmark says follows from its figures."""

from __future__ import annotations

from eval.benchmarks.observing import Part, agreement_in_words, render, speed_in_words


def test_the_ratio_is_that_of_all_seconds_with_the_range_of_the_parts() -> None:
    parts = [Part(10, 6.0, 2.0, 10, 10), Part(30, 14.0, 8.0, 30, 30)]
    words = speed_in_words(parts)
    assert "**2.00 times** as fast (1.75 to 3.00 in the parts)" in words
    assert "4.0 turns/s where the loop does 2.0" in words


def test_equal_observations_are_told_apart_from_identical_ones() -> None:
    assert "All 20 observations are equal to the last" in agreement_in_words([Part(20, 1, 1, 20, 20)])
    assert agreement_in_words([Part(20, 1, 1, 20, 7)]).startswith("All 20 observations are equal but for prob")
    assert "19 of 20 observations are equal but for probabilities, 7 with" in agreement_in_words(
        [Part(20, 1, 1, 19, 7)]
    )


def test_the_report_says_what_kind_of_model_it_was() -> None:
    part = [Part(20, 2.0, 1.0, 20, 20)]
    assert "> random weights with a head that recites" in render("reciting-0.6b-f16", part, 1, "command")
    assert "stand-in" in render("nano-q8_0", part, 1, "command") and "> " not in render("mine", part, 1, "command")


def test_the_report_says_on_which_cores_it_ran() -> None:
    page = render("tiny", [Part(20, 2.0, 1.0, 20, 20)], 1, "command")
    assert "cores (" in page or " cores, " in page
    assert "| 1 | 20 | 2.0 | 1.0 | 2.00 | 10.0 | 20.0 | 20 | 20 |" in page
