"""What `python -m tests.support.house` counts is held where it was brought to."""

from tests.support import exclusions, faults, house


def test_no_value_of_our_own_is_asked_what_it_is():
    """An optional feature is a member of a base with a default; a plain class is adapted in core/reading/adapted.py."""
    assert [call for call in house.sniffs() if not house.is_foreign(*call)] == []


def test_the_table_of_foreign_names_has_nothing_that_is_not_used():
    calls = house.sniffs()
    unused = [name for name in house.ADAPTING if not any(file == name for file, _, _ in calls)]
    names = [name for names in house.FOREIGN.values() for name in names.split()]
    assert unused + [name for name in names if not any(f"'{name}'" in call for _, _, call in calls)] == []


def test_no_files_form_a_circle():
    """Type hints included."""
    assert house.circles() == []


def test_the_house_can_be_held_in_ones_head():
    """The rooms at the top, and what leads from one to another."""
    arrows = house.arrows_of_rooms()
    assert len(house.rooms()) <= 15
    assert house.floors(house.rooms(), arrows) <= 6
    assert len(arrows) <= 40


def test_the_page_has_the_table_of_what_excludes_what():
    assert exclusions.PAGE.read_text("utf-8") == exclusions.page(), "run python -m tests.support.exclusions"


def test_faults_that_the_suite_must_notice_fit_the_sources():
    assert faults.misfits() == []
    page = (house.ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert [fault.name for fault in faults.FAULTS if f"\n- {fault.name}\n" not in page] == []
