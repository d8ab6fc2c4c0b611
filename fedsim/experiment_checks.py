"""What must hold between the keys of an experiment. Each rule is a few lines and names both sides of the conflict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path as FilePath

from fedsim.experiment import AdversaryEntry, Clients, Component, Experiment, LocalTraining, Runtime
from fedsim.schema import Problems
from fedsim.secagg import rounds
from fedsim.toml_lines import Path


def check(experiment: Experiment, problems: Problems) -> None:
    """Note every conflict in `problems`."""
    for rule in RULES:
        rule(experiment, problems)


def _sampling(experiment: Experiment, problems: Problems) -> None:
    clients = experiment.clients
    if clients.per_round is not None and clients.per_round > clients.count:
        problems.add(
            ("clients", "per_round"),
            f"{clients.per_round} clients a round, but there are {clients.count}; lower it or raise clients.count",
        )
    sampled = min(clients.per_round or clients.count, clients.count)
    if experiment.server.min_clients > sampled:
        problems.add(
            ("server", "min_clients"),
            f"{experiment.server.min_clients} updates are required, but only {sampled} clients train in a round",
        )
    strategy = experiment.server.strategy
    if hasattr(strategy.settings, "check_clients"):
        problem = strategy.settings.check_clients(sampled)
        if problem:
            problems.add(("server", "strategy"), problem)


def _groups(experiment: Experiment, problems: Problems) -> None:
    seen: dict[int, int] = {}
    for position, group in enumerate(experiment.clients.groups):
        if not group.members:
            problems.add(("clients", "groups", position, "members"), "must have at least one item")
        for place, member in enumerate(group.members):
            path = ("clients", "groups", position, "members", place)
            if member >= experiment.clients.count:
                problems.add(path, _no_client(member, experiment))
            elif member in seen:
                problems.add(path, f"client {member} is in group {seen[member]} already; a client has one group")
            seen.setdefault(member, position)


def _algorithm(experiment: Experiment, problems: Problems) -> None:
    """FedSGD has no local steps, so what would shape them is refused rather than ignored."""
    if experiment.clients.algorithm != "fedsgd":
        return
    plain = LocalTraining()
    places: list[tuple[Path, LocalTraining]] = [(("clients",), experiment.clients)]
    # A group takes over what [clients] says; that is one mistake and not one for each group.
    for position, group in enumerate(experiment.clients.groups):
        places.append((("clients", "groups", position), group))
    for path, training in places:
        for key, remedy in _LOCAL.items():
            inherited = training is not experiment.clients and getattr(training, key) == getattr(
                experiment.clients, key
            )
            if getattr(training, key) != getattr(plain, key) and not inherited:
                problems.add((*path, key), f"fedsgd sends the gradient of one batch and takes no local steps; {remedy}")


_LOCAL = {
    "local_steps": 'use algorithm = "fedavg" for them',
    "local_epochs": 'use algorithm = "fedavg" for epochs',
    "learning_rate": "its step is server.learning_rate",
    "momentum": 'use strategy = "fedavgm" for momentum on the server, or algorithm = "fedavg"',
    "weight_decay": 'use algorithm = "fedavg" for weight decay',
}


def _schedule(experiment: Experiment, problems: Problems) -> None:
    """What walks over rounds has to lie within them, and fedavg has its own order of batches."""
    for place, number in enumerate(experiment.save_rounds):
        if number > experiment.rounds:
            problems.add(
                ("save_rounds", place), f"there is no round {number}; the experiment has rounds = {experiment.rounds}"
            )
    steps = experiment.server.milestones
    if list(steps) != sorted(set(steps)):
        problems.add(("server", "milestones"), f"must rise from one to the next, not {list(steps)}")
    clients = experiment.clients
    if clients.algorithm == "fedavg":
        for position, group in enumerate(clients.groups):
            if group.batches not in ("random", clients.batches):
                problems.add(("clients", "groups", position, "batches"), _WALK)
        if clients.batches != "random":
            problems.add(("clients", "batches"), _WALK)
    elif clients.batches != "random" and clients.per_round not in (None, clients.count):
        problems.add(
            ("clients", "batches"),
            f"'{clients.batches}' walks through a client's images from round to round, but only {clients.per_round} "
            f"of {clients.count} clients take part in a round; leave per_round out",
        )


_WALK = "fedavg walks through shuffled passes within each round; leave batches out, or use fedsgd"


def mixing(defenses: tuple[Component, ...]) -> list[Component]:
    """Those defenses that mix images."""
    return [one for one in defenses if hasattr(one.settings, "mix")]


def _mixing(experiment: Experiment, problems: Problems) -> None:
    """One encoding that mixes, at most: what a second one did to the first one's labels would have no name."""
    clients = experiment.clients
    places: list[tuple[Path, LocalTraining]] = [(("clients",), clients)]
    places += [(("clients", "groups", position), group) for position, group in enumerate(clients.groups)]
    for path, training in places:
        found = mixing(training.defenses)
        if len(found) > 1 and (training is clients or training.defenses != clients.defenses):
            names = " and ".join(one.name for one in found)
            problems.add((*path, "defenses"), f"{names} both mix images; a client can have one such defense")
        if training is clients or training.defenses != clients.defenses:
            _beside_one_another(training, experiment, (*path, "defenses"), problems)
    for position, entry in enumerate(experiment.adversaries):
        targets = [target for target in entry.targets if target < clients.count]
        for place, item in enumerate(entry.knows):
            plain = [client for client in targets if not mixing(clients.training(client).defenses)]
            if item.startswith("mixing_") and entry.vantage == "client":
                problems.add(
                    ("adversaries", position, "knows", place),
                    f"'{item}' is about another client's encoded batch, of which the vantage \"client\" sees nothing; "
                    "leave it out",
                )
            elif item.startswith("mixing_") and plain:
                problems.add(
                    ("adversaries", position, "knows", place),
                    f"'{item}' is about an encoding that mixes images, but client {plain[0]} has no such defense; "
                    "leave it out, or give that client mixup or instahide",
                )


def _beside_one_another(training: LocalTraining, experiment: Experiment, path: Path, problems: Problems) -> None:
    """A defense may have something against the others, or against the BatchNorm policy."""
    has_batchnorm = bool(getattr(experiment.model.settings, "batchnorm", None))
    for place, defense in enumerate(training.defenses):
        if hasattr(defense.settings, "objection"):
            others = [one.settings for position, one in enumerate(training.defenses) if position != place]
            reason = defense.settings.objection(others, has_batchnorm, experiment.clients.batchnorm)
            if reason:
                problems.add(path, f"'{defense.name}': {reason}")
                return


def _files(experiment: Experiment, problems: Problems) -> None:
    """A file that is not there is noticed before anything is trained."""
    if experiment.checkpoint is not None and not _is_file(experiment.checkpoint):
        problems.add(
            ("checkpoint",),
            f"{experiment.checkpoint}: there is no such file; give one that a run with save_rounds has written",
        )


def _is_file(path: str) -> bool:
    """Not so what is no path at all: too long, or with a NUL byte."""
    try:
        return FilePath(path).is_file()
    except (OSError, ValueError):
        return False


def _batchnorm(experiment: Experiment, problems: Problems) -> None:
    if getattr(experiment.model.settings, "batchnorm", None) is not False:
        return
    for position, entry in enumerate(experiment.adversaries):
        for place, item in enumerate(entry.knows):
            if item in ("batch_statistics", "running_statistics"):
                problems.add(
                    ("adversaries", position, "knows", place),
                    f"'{item}' is BatchNorm knowledge, but model '{experiment.model.name}' has no BatchNorm; "
                    "leave it out",
                )


def _secure(experiment: Experiment, problems: Problems) -> None:
    """Secure aggregation has to be possible with so many clients, and nothing may need their updates one by one."""
    mode, clients = experiment.server.secure_aggregation, experiment.clients
    if mode is None:
        return
    path: Path = ("server", "secure_aggregation")
    for key, problem in mode.settings.problems(rounds.drawn(experiment), rounds.most_examples(experiment), None):
        problems.add((*path, key), problem)
    strategy = experiment.server.strategy
    if getattr(strategy.settings, "individual_updates", True):
        problems.add(
            ("server", "strategy"),
            f"'{strategy.name}' compares the updates of single clients, and under secure aggregation ({mode.name}) the "
            'server has their sum alone; use a strategy that averages, such as "fedavg" or "fedadam"',
        )
    places: list[tuple[Path, LocalTraining]] = [(("clients",), clients)]
    places += [(("clients", "groups", position), group) for position, group in enumerate(clients.groups)]
    for place, training in places:
        for defense in training.defenses if training is clients or training.defenses != clients.defenses else ():
            if getattr(defense.settings, "individual_updates", False):
                problems.add(
                    (*place, "defenses"),
                    f"'{defense.name}' needs a server that sees single updates, and under secure aggregation "
                    f"({mode.name}) it has their sum alone; leave one of the two out",
                )


def _colluders(position: int, entry: AdversaryEntry, experiment: Experiment, problems: Problems) -> None:
    path: Path = ("adversaries", position, "colluders")
    if entry.colluders and entry.vantage != "server":
        problems.add(path, f'clients work together with a server, but the vantage is "{entry.vantage}"; use "server"')
    elif entry.colluders and experiment.server.secure_aggregation is None:
        problems.add(path, "without secure aggregation a server sees every update anyhow; leave it out, or turn one on")
    if len(set(entry.colluders)) != len(entry.colluders):
        problems.add(path, "has the same item twice")
    for place, client in enumerate(entry.colluders):
        if client >= experiment.clients.count:
            problems.add((*path, place), _no_client(client, experiment))
        elif client in entry.targets:
            problems.add((*path, place), f"client {client} is a target; whoever works with the adversary is none")


def _adversaries(experiment: Experiment, problems: Problems) -> None:
    for name, times in Counter(entry.id for entry in experiment.adversaries).items():
        if times > 1:
            second = [i for i, entry in enumerate(experiment.adversaries) if entry.id == name][1]
            # An id that nobody gave stands nowhere.
            given = name != experiment.adversaries[second].plugin.name
            problems.add(
                ("adversaries", second, "id") if given else ("adversaries", second),
                f"{times} adversaries are called '{name}'; give each an id of its own, as in id = \"{name}-2\"",
            )
    for position, entry in enumerate(experiment.adversaries):
        path = ("adversaries", position)
        for key in ("targets", "rounds"):
            if not getattr(entry, key):
                problems.add((*path, key), "must have at least one item")
            if len(set(getattr(entry, key))) != len(getattr(entry, key)):
                problems.add((*path, key), "has the same item twice")
        for place, target in enumerate(entry.targets):
            if target >= experiment.clients.count:
                problems.add((*path, "targets", place), _no_client(target, experiment))
        for place, number in enumerate(entry.rounds):
            if number > experiment.rounds:
                problems.add(
                    (*path, "rounds", place),
                    f"there is no round {number}; the experiment has rounds = {experiment.rounds}, counted from 1",
                )
        if entry.vantage == "client" and entry.member is None:
            problems.add((*path, "member"), 'missing; with vantage = "client", say which client the adversary is')
        if entry.vantage != "client" and entry.member is not None:
            problems.add((*path, "member"), f'belongs to vantage = "client", but this one is "{entry.vantage}"')
        if entry.aggregate and entry.vantage != "server":
            problems.add(
                (*path, "aggregate"),
                f'the sum of updates is what a server sees, but the vantage is "{entry.vantage}"; use "server"',
            )
        secured = entry.vantage == "server" and experiment.server.secure_aggregation is not None
        if entry.aggregate or secured:
            among = range(experiment.clients.count) if secured else entry.targets
            _summed(position, entry, among, experiment, problems)
        _colluders(position, entry, experiment, problems)
        if entry.member is not None and entry.member >= experiment.clients.count:
            problems.add((*path, "member"), _no_client(entry.member, experiment))


def _summed(
    position: int, entry: AdversaryEntry, among: Sequence[int], experiment: Experiment, problems: Problems
) -> None:
    """What is granted of a sum, and what makes sense of it, has to hold for all of its clients."""
    trainings = _trainings(experiment.clients, among)
    # What is derived of a sum is one client's, with that client's rate and defenses.
    single = entry.derive is not None
    if not single and len({one.learning_rate for one in trainings}) > 1:
        problems.add(
            ("adversaries", position, "targets"),
            "the clients have different learning_rate, so their sum is no gradient times one rate; "
            "target clients that have the same",
        )
    for place, item in enumerate(entry.knows):
        if item.startswith("mixing_") and len(among) > 1:
            problems.add(
                ("adversaries", position, "knows", place),
                f"'{item}' tells one client's images apart, and this is the sum of several; leave it out",
            )
    if "labels" in entry.knows and len({bool(mixing(one.defenses)) for one in trainings}) > 1:
        problems.add(
            ("adversaries", position, "knows"),
            "some of the clients whose updates are summed mix their labels and others do not, so there is no one kind "
            'of labels to know; leave "labels" out, or target clients of one kind',
        )
    if not single and "defenses" in entry.knows and len({one.defenses for one in trainings}) > 1:
        problems.add(
            ("adversaries", position, "knows"),
            "the clients whose updates are summed have different defenses, so there are none to know of the sum; "
            'leave "defenses" out (with aware = false, if the attack has that setting), or '
            + ("give all clients the same" if len(among) > len(entry.targets) else "target clients that have the same"),
        )


def _trainings(clients: Clients, among: Sequence[int]) -> list[LocalTraining]:
    """The different settings that hold for some clients, of whom there may be very many."""
    wanted = {client for client in among if client < clients.count}
    inside = {place: wanted.intersection(group.members) for place, group in enumerate(clients.groups)}
    held: list[LocalTraining] = [clients.groups[place] for place, members in inside.items() if members]
    return held if len(set().union(*inside.values())) == len(wanted) else [*held, clients]


def _no_client(client: int, experiment: Experiment) -> str:
    count = experiment.clients.count
    return f"there is no client {client}; clients.count is {count}, so clients are 0 to {count - 1}"


def _runtime(experiment: Experiment, problems: Problems) -> None:
    """What only one of the grids can do."""
    runtime = experiment.runtime
    if runtime.attack_timeout is not None and runtime.isolation == "none":
        problems.add(
            ("runtime", "attack_timeout"),
            'an attack in the simulation\'s own process cannot be ended; use isolation = "process", or leave it out',
        )
    if runtime.attacks == "during" and runtime.isolation == "none":
        problems.add(
            ("runtime", "attacks"),
            'attacks in the simulation itself cannot run beside it; use isolation = "process", or "after"',
        )
    if runtime.grid == "ray":
        if runtime.vectorized != "off":
            problems.add(
                ("runtime", "vectorized"),
                'clients that train as one computation are in one process; use grid = "inline", or vectorized = "off"',
            )
        return
    if runtime.attacks == "during":
        problems.add(
            ("runtime", "attacks"), 'attacks run beside the rounds on a Ray cluster alone; use grid = "ray", or "after"'
        )
    plain = Runtime()
    for key in ("workers", "gpus_per_client", "gpus_per_attack", "client_timeout"):
        if getattr(runtime, key) != getattr(plain, key):
            problems.add(("runtime", key), 'means a Ray cluster; use grid = "ray" (or --ray ADDRESS), or leave it out')


RULES = (
    _sampling, _groups, _algorithm, _schedule, _mixing, _batchnorm, _files, _secure, _adversaries, _runtime
)  # fmt: skip
