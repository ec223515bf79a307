"""The kit rejects every store that breaks a promise, and passes the same store unbroken."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from graphkeep import GraphkeepError
from graphkeep.testing import StoreMachine
from tests.backends import mutants, mutants_of_runs, mutants_of_stores
from tests.backends.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
Verdict = dict[str, dict[str, set[str]]]


@pytest.fixture(scope='module')
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """Run the kit on the unbroken store, and on each mutant the clause that should reject it.

    Returns:
        Of each class, the clauses that passed, failed, and were in error.
    """
    report = tmp_path_factory.mktemp('mutants') / 'report.xml'
    wanted = [_id(mutants.TestUnbroken), *(f'{_id(mutant)}::{clause}' for mutant, clause in MUTANTS.items())]
    command = [sys.executable, '-m', 'pytest', *wanted, f'--junitxml={report}', '-k', 'not as_the_model']
    command += ['--tb=no', '-q', '-p', 'no:cacheprovider', '--timeout=30']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding='utf-8', timeout=110, check=False)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    found: Verdict = defaultdict(
        lambda: {'passed': set(), 'failure': set(), 'error': set(), 'skipped': set()}
    )
    for case in ElementTree.parse(report).iter('testcase'):  # noqa: S314 -- written by the line above
        outcome = next((child.tag for child in case), 'passed')
        class_name = case.get('classname', '').rpartition('.')[2]
        found[class_name][outcome].add(case.get('name', '').partition('[')[0])
    return found


def _id(class_: type[object]) -> str:
    return f'{inspect.getfile(class_)}::{class_.__name__}'


def test_unbroken_store_passes(verdict: Verdict):
    """The store that the mutants are made of passes, by the same means."""
    found = verdict['TestUnbroken']
    assert (found['failure'], found['error']) == (set(), set())
    assert len(found['passed']) > 100


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_rejected(verdict: Verdict, mutant: type[object]):
    """A store that breaks this promise fails the clause that states it."""
    name, clause = mutant.__name__, MUTANTS[mutant]
    assert clause in verdict[name]['failure'], f'{clause} should reject {name}; it came to {verdict[name]}'


def test_unbroken_store_passes_what_rejects_the_mutants(verdict: Verdict):
    """No clause that rejects a mutant rejects the unbroken store; what that cannot do is shown on files."""
    on_files = {'test_killed', 'test_corrupt_run', 'test_corrupt_run_harms_no_other'}
    assert set(MUTANTS.values()) - verdict['TestUnbroken']['passed'] == on_files


def test_incomplete_class_is_rejected(tmp_path: Path):
    """A class that lacks a method fails, and the message names what is missing."""
    file = tmp_path / 'test_it.py'
    file.write_text(
        'from graphkeep.testing import StoreContract\n\nclass TestIt(StoreContract):\n    pass\n',
        encoding='utf-8',
    )
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding='utf-8', check=False)
    assert done.returncode != 0
    assert 'TestIt lacks `open_store` and `read_raw`, which StoreClauses asks for' in done.stdout


@pytest.mark.parametrize(
    'mutant',
    [
        mutants.TestUnbroken,
        mutants_of_runs.TestIgnoresTheFence,
        mutants_of_runs.TestForgetsToGiveUp,
        mutants_of_runs.TestFenceStandsStill,
        mutants_of_runs.TestDropsTags,
        mutants_of_stores.TestForgetsLineage,
        mutants_of_stores.TestDeletesWhatIsInHand,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_state_machine_finds_it(mutant: type[mutants.Mutant]):
    """The state machine tells a mutant from the model, and the unbroken store not."""
    options = settings(
        max_examples=30 if mutant is mutants.TestUnbroken else 300,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=cast('Any', list(HealthCheck)),
    )
    rejects = pytest.raises((AssertionError, GraphkeepError))
    with nullcontext() if mutant is mutants.TestUnbroken else rejects:
        run_state_machine_as_test(cast('Any', lambda: StoreMachine(mutant())), settings=options)  # pyright: ignore[reportUnknownMemberType]
