"""A quiz: an agent asks, a person answers, perhaps tomorrow, and the agent says whether that is right.

```
python question_graph.py runs/q1.json             asks, and exits
python question_graph.py runs/q1.json Paris       goes on with the answer
```

In between there is no process: the run is in the file, with all that was said. No network and no key is
needed, for the model is a function; for a real one, give the agent its name instead.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Annotated

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import AsJson, FileStatePersistence, Graph, iter_or_resume

CAPITALS = {'France': 'Paris', 'Kenya': 'Nairobi', 'Peru': 'Lima'}
NEXT = 'Ask the next question.'


def quiz_master(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Stand in for a model: ask for a capital that it has not asked for yet, or judge the answer."""
    said = [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, TextPart | UserPromptPart)
    ]
    asked = [country for country in CAPITALS if any(country in text for text in said)]
    if said[-1] != NEXT:
        right = CAPITALS[asked[-1]] == said[-1]
        text = 'Right.' if right else f'No, that is {CAPITALS[asked[-1]]}.'
    elif len(asked) < len(CAPITALS):
        text = f'What is the capital of {[*CAPITALS][len(asked)]}?'
    else:
        text = 'I have no more questions.'
    return ModelResponse(parts=[TextPart(text)])


agent = Agent(FunctionModel(quiz_master))


@dataclass
class Quiz:
    """The state: all that was said, which is all that a model remembers."""

    # `AsJson`: what a tool returns may be of any type, and is loaded as the JSON that a model sees of it
    messages: Annotated[list[ModelMessage], AsJson] = field(default_factory=list[ModelMessage])

    async def say(self, text: str) -> str:
        """Say something to the agent, and return what it says."""
        result = await agent.run(text, message_history=self.messages)
        self.messages = result.all_messages()
        return result.output


@dataclass
class Ask(BaseNode[Quiz, None, str]):
    """Let the agent ask."""

    async def run(self, ctx: GraphRunContext[Quiz, None]) -> Answer | End[str]:
        """Ask, until there are no more questions."""
        question = await ctx.state.say(NEXT)
        return Answer(question) if question.endswith('?') else End(question)


@dataclass
class Answer(BaseNode[Quiz, None, str]):
    """Where the run waits for a person."""

    question: str
    answer: str | None = None

    async def run(self, ctx: GraphRunContext[Quiz, None]) -> Judge:
        """Hand the answer on."""
        if self.answer is None:
            raise ValueError(f'Nobody has answered: {self.question}')
        return Judge(self.answer)


@dataclass
class Judge(BaseNode[Quiz, None, str]):
    """Let the agent judge the answer."""

    answer: str

    async def run(self, ctx: GraphRunContext[Quiz, None]) -> Ask | End[str]:
        """Judge it: a right answer ends the quiz, after a wrong one the agent asks again."""
        verdict = await ctx.state.say(self.answer)
        return End(verdict) if verdict == 'Right.' else Ask()


question_graph = Graph(nodes=(Ask, Answer, Judge))


async def main(file: str, answer: str | None = None) -> None:
    """Start the run or go on with it, until it needs an answer that is not there."""
    persistence = FileStatePersistence(file)
    async with iter_or_resume(question_graph, Ask(), state=Quiz(), persistence=persistence) as run:
        async for node in run:
            if isinstance(node, Answer):
                if answer is None:
                    print(node.question)
                    return
                node.answer, answer = answer, None
    if run.result is not None:
        print(run.result.output)


if __name__ == '__main__':
    asyncio.run(main(*sys.argv[1:3]))
