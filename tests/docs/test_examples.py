"""The examples of the documents, run as a reader runs them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from graphkeep import FileStatePersistence

QUESTION_GRAPH: Final = Path(__file__).resolve().parents[2] / 'docs' / 'examples' / 'question_graph.py'


def ask(file: Path, *answer: str) -> str:
    """Run the example in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, '-W', 'error', str(QUESTION_GRAPH), str(file), *answer],
        capture_output=True,
        encoding='utf-8',
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.strip()


@pytest.fixture(scope='module')
def example() -> ModuleType:
    """Return the example as a module."""
    pytest.importorskip('pydantic_ai')
    spec = importlib.util.spec_from_file_location('question_graph', QUESTION_GRAPH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules['question_graph'] = module  # so that annotations are resolved there
    spec.loader.exec_module(module)
    return module


async def messages(example: ModuleType, file: Path) -> list[Any]:
    """Load the message history of a run."""
    persistence = FileStatePersistence(file)
    persistence.set_graph_types(example.question_graph)
    return (await persistence.last_state()).messages


def texts(history: list[Any]) -> list[str]:
    """Return what was said."""
    return [part.content for message in history for part in message.parts]


@pytest.mark.anyio
async def test_a_quiz_goes_on_in_other_processes(example: ModuleType, tmp_path: Path):
    """The quiz stops for a person and goes on in another process, which knows all that was said before."""
    file = tmp_path / 'runs' / 'q1.json'
    assert ask(file) == 'What is the capital of France?'
    assert ask(file) == 'What is the capital of France?', 'asking again changes nothing'
    before = await messages(example, file)
    assert texts(before) == [example.NEXT, 'What is the capital of France?']

    # the model takes from the history which country comes next
    assert ask(file, 'Lyon') == 'What is the capital of Kenya?'
    after = await messages(example, file)
    assert after[: len(before)] == before, (
        'the messages are the ones that were stored, with their times and ids'
    )
    assert texts(after[len(before) :]) == [
        'Lyon',
        'No, that is Paris.',
        example.NEXT,
        'What is the capital of Kenya?',
    ]

    assert ask(file, 'Nairobi') == 'Right.'
    assert ask(file, 'Lima') == 'Right.', 'a finished run keeps its result'
    records = await FileStatePersistence(file).load_history()
    assert [r.node_id for r in records] == ['Ask', 'Answer', 'Judge', 'Ask', 'Answer', 'Judge', 'End']
    assert {r.status for r in records} == {'success'}
    assert [r.attempt for r in records] == [1, 1, 1, 1, 1, 1, 0]


@pytest.mark.anyio
async def test_a_quiz_runs_out_of_questions(tmp_path: Path):
    """After the last country the quiz ends."""
    file = tmp_path / 'q2.json'
    ask(file)
    assert [ask(file, 'Rome') for _ in range(3)][-1] == 'I have no more questions.'


@pytest.mark.anyio
async def test_messages_are_faithful(example: ModuleType, tmp_path: Path):
    """Messages are stored with the faithfulness check on, and loaded as objects equal to those given."""
    persistence = FileStatePersistence(tmp_path / 'q3.json')
    assert persistence.verify
    quiz = example.Quiz()
    await quiz.say(example.NEXT)
    await quiz.say('Paris')
    await example.question_graph.initialize(example.Ask(), persistence, state=quiz)
    loaded = await messages(example, tmp_path / 'q3.json')
    assert loaded == quiz.messages
    assert [type(message) for message in loaded] == [type(message) for message in quiz.messages]
    (stored,) = json.loads((tmp_path / 'q3.json').read_bytes())
    assert [message['kind'] for message in stored['state']['messages']] == ['request', 'response'] * 2
