"""What `explain` reads."""

from __future__ import annotations

from cortex_core.fleet.story import Story, StoryLine


def test_a_story_reads_in_the_order_it_happened():
    story: Story[str] = Story(subjects=10, lines=10)
    story.note("r1", 1.0, "came")
    story.note("r1", 2.5, "sent to {} on {}", "a", "cuda:0")
    assert story.read("r1") == [StoryLine(1.0, "came"), StoryLine(2.5, "sent to a on cuda:0")]


def test_a_value_with_braces_is_no_template():
    story: Story[str] = Story(subjects=1, lines=1)
    story.note("r1", 1.0, "failed: {}", "{nothing} {}")
    assert story.read("r1")[0].text == "failed: {nothing} {}"


def test_the_oldest_subject_makes_room():
    story: Story[str] = Story(subjects=2, lines=10)
    for request in ("r1", "r2", "r3"):
        story.note(request, 1.0, "came")
    assert story.read("r1") == []
    assert len(story.read("r2")) == len(story.read("r3")) == 1


def test_of_a_long_story_the_end_is_kept():
    story: Story[str] = Story(subjects=1, lines=2)
    for number in range(5):
        story.note("r1", float(number), "step {}", number)
    assert [line.text for line in story.read("r1")] == ["step 3", "step 4"]


def test_nobody_has_a_story_before_anything_happened():
    assert Story(subjects=1, lines=1).read("r1") == []
