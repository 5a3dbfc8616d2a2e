"""Which policy judged: the tags of tools/verdict_tags, and which tags there may be.

A tag is what one verdict was made of: reason, bank, slot, incarnation. Those that were asked for are the explain
`explain`'s about the test's own frames; those that were met are the hooks', of a sample of what they dropped.

The test is cut into spans, numbered as it goes: what begins a push begins a span, and so do its answer and a grant's.
A tag names the span in which its verdict was begun, and the one in which it had ended. So it is known which policies
may have made it: those whose time in force, from when they were asked for to when their successor had answered, these
spans touch. One of them has to account for the whole tag: the bank as control.active_bank was after its push, the
slot as the tables in that bank say, the incarnation as its lease was bound, the reason as the test says.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import pathlib
import subprocess
from collections import Counter
from collections.abc import Mapping

from lab import Lab

Said = tuple[str, str | None]  # a reason, and the resource whose slot the verdict names
Prescribed = Mapping[str, Said]  # by hook

LEASED = "leased"  # a reason that a grant changes: no_lease before it, endpoint after it
FOREVER = 1 << 63


@dataclasses.dataclass(frozen=True)
class Held:
    """What a resource has under the policy in force."""

    slot: str
    incarnation: int
    lease: str  # "-" while the gate denies


@dataclasses.dataclass
class InForce:
    """A policy and what it says, from one push to the next."""

    policy: str
    first: int  # span
    last: int
    granting: int  # the span in which its own lease is granted, if it has one
    bank: int
    held: dict[str, Held]

    def explains(self, tag: Tag, said: Said | None) -> bool:
        """Whether this policy, which says `said` to such a packet at that hook, is where the whole tag comes from."""
        if said is None or tag.bank != self.bank:
            return False
        reason, resource = said
        if reason == LEASED:
            reason = tag.reason
            may = {"no_lease": tag.before <= self.granting, "endpoint": tag.after >= self.granting}
            if not may.get(reason, False):
                return False
        if resource is None:
            return (tag.reason, tag.slot, tag.incarnation) == (reason, "-", 0)
        held = self.held[resource]
        bound = reason == "no_lease" or tag.incarnation == held.incarnation
        return (tag.reason, tag.slot) == (reason, held.slot) and bound

    def describe(self, said: Said | None) -> str:
        words = f"{self.policy} of spans {self.first} to {self.last}: bank {self.bank}"
        if said is None:
            return f"{words}, nothing"
        held = self.held[said[1]] if said[1] else Held("-", 0, "-")
        return f"{words}, {said[0]}, slot {held.slot}, incarnation {held.incarnation}"


@dataclasses.dataclass(frozen=True)
class Tag:
    """A tag, and how many verdicts had it."""

    how: str  # asked or met
    name: str
    hook: str
    reason: str
    bank: int
    slot: str
    incarnation: int
    before: int
    after: int
    count: int

    def describe(self) -> str:
        made_of = f"bank {self.bank}, {self.reason}, slot {self.slot}, incarnation {self.incarnation}"
        return f"{self.how} {self.count} times: {made_of} in spans {self.before} to {self.after}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A packet at a hook, and what P and Q say to it there."""

    name: str
    hook: str
    interface: str  # of the node
    any_port: bool  # it is met from other source ports, too
    frame: bytes
    said: Mapping[str, Said | None]  # by policy

    def line(self) -> str:
        ports = "any-port" if self.any_port else "one-port"
        return f"verdict {self.name} {self.hook} {self.interface} {ports} {self.frame.hex()}\n"


class Tags:
    """tools/verdict_tags at work, beside a test that swaps policies and says so."""

    def __init__(
        self, lab: Lab, tool: pathlib.Path, questions: list[Question], resources: dict[str, str], kept: dict[str, str]
    ) -> None:
        self.questions = {(each.name, each.hook): each for each in questions}
        self.resources = resources  # by name, as the tool wants them
        self.kept = kept  # leases that live from end to end, by resource
        self.span = self.asked = 0
        self.in_force: list[InForce] = []
        self.result = lab.dir / "tags"
        plan = lab.dir / "questions"
        plan.write_text("".join(map(Question.line, questions)))
        argv = [str(tool), str(next(lab.pin_dir.glob("v*"))), str(plan), str(self.result)]
        self.process = lab.popen("node", argv, stdin=subprocess.PIPE)
        self.answer("ready")

    def answer(self, wanted: str = "") -> str:
        line = self.process.stdout.readline().strip()
        assert line and (not wanted or line == wanted), (line, self.process.communicate()[1])
        return line

    def ask(self, words: str, wanted: str = "") -> str:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.answer(wanted)

    def enter(self) -> int:
        self.span += 1
        self.ask(f"span {self.span}", "ok")
        return self.span

    def look(self, leases: dict[str, str]) -> tuple[int, dict[str, Held]]:
        """The active bank, and what resources hold; `leases` have to be among it."""
        bank, *words = self.ask(" ".join(["policy", *self.resources.values()])).split()
        held = {}
        for resource, word in zip(self.resources, words, strict=True):
            if word != "-":
                slot, incarnation, lease = word.split("/")
                held[resource] = Held(slot, int(incarnation), lease)
        assert leases.items() <= {resource: each.lease for resource, each in held.items()}.items(), (leases, held)
        return int(bank), held

    def pushing(self) -> None:
        """Before a push: its policy may be in force from now on."""
        self.asked = self.enter()

    def pushed(self, policy: str) -> None:
        """After it: the policy before is not in force any more."""
        granting = self.enter()
        bank, held = self.look(self.kept)
        if self.in_force:
            self.in_force[-1].last = self.asked
            assert self.in_force[-1].bank != bank, "a push turns to the other bank"
        self.in_force.append(InForce(policy, self.asked, FOREVER, granting, bank, held))

    def granted(self, leases: dict[str, str]) -> None:
        """After a grant of the policy's own resources."""
        self.enter()
        _, self.in_force[-1].held = self.look(self.kept | leases)

    def finish(self) -> list[Tag]:
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        types = (str, str, str, str, int, str, int, int, int, int)
        lines = (line.split() for line in self.result.read_text().splitlines())
        return [Tag(*(kind(word) for kind, word in zip(types, words, strict=True))) for words in lines]

    def judge(self, tags: list[Tag]) -> list[str]:
        """What is wrong with them; and each policy has to have given each of its answers."""
        wrong: list[str] = []
        given: Counter[tuple[str, ...]] = Counter()  # asked: name, hook, policy, reason; met: hook, policy
        for tag in tags:
            question = self.questions[tag.name, tag.hook]
            first = bisect.bisect_left(self.in_force, tag.before, key=lambda policy: policy.last)
            last = bisect.bisect_right(self.in_force, tag.after, key=lambda policy: policy.first)
            may = self.in_force[first:last]
            by = [policy for policy in may if policy.explains(tag, question.said[policy.policy])]
            for policy in by:
                what = (tag.name, tag.hook, policy.policy, tag.reason) if tag.how == "asked" else (tag.hook, policy.policy)
                given[what] += tag.count
            if not by:
                told = "; ".join(policy.describe(question.said[policy.policy]) for policy in may)
                wrong.append(f"{tag.name} at {tag.hook}: {tag.describe()}, may have been by {told}")
        for (name, hook), question in self.questions.items():
            for policy, said in question.said.items():
                reasons = () if said is None else ("no_lease", "endpoint") if said[0] == LEASED else (said[0],)
                wrong += [f"{name} at {hook}: {policy} never said {r}" for r in reasons if not given[name, hook, policy, r]]
        for hook, policy in itertools.product(("from_tenant", "from_uplink"), ("P", "Q")):
            if not given[hook, policy]:
                wrong.append(f"{policy} was never met dropping at {hook}")
        return wrong[:20] + ([f"and {len(wrong) - 20} more tags that no policy explains"] if len(wrong) > 20 else [])
