"""The replay: what it repeats is what PyTorch does, and what it cannot repeat is refused."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MUJOCO_SCRIPTS, ROOT, FakeRun, Program, minibatch_of
from test_update import FLAGS, A, FakeEnvs, N, O, T, own_flags
from torch import nn

import ppo_continuous as ppo


def learner(script, seed=1, **flags):
    """args, agent and adam."""
    torch.manual_seed(seed)
    args = script.Args(**flags)
    agent = script.Agent(O, A, args)
    return args, agent, script.Adam(agent.parameters(), args.adam_eps)


def coefficients(args):
    return [x for name, x in vars(args).items() if name in ("clip_coef", "kl_coef")]


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("flags", FLAGS)
def test_replayed_update_equals_pytorch(script, flags):
    """Step by step, to float32 rounding, while step sizes and statistics go on changing."""
    (args, plain, adam), (_, fast, fast_adam) = (
        learner(script, **own_flags(script, flags)) for _ in range(2)
    )
    _, old, _ = learner(script)
    old.log_std.data += 0.3
    minibatch, coefs = [x.numpy() for x in minibatch_of(script, old, 64)], coefficients(args)
    inputs = 0.0, *coefs, *(np.zeros_like(x) for x in minibatch)
    step = script.Replay(True, partial(script.update, fast, fast_adam, args), *inputs)
    step.calls = 2**20 + 1  # away from the calls that are compared
    for i in range(5):
        minibatch = minibatch_of(script, old, 64)
        before = [p.clone() for p in plain.parameters()]
        numbers = 1e-3 / (1 + i), *coefs
        slow = script.update(plain, adam, args, *map(torch.tensor, numbers), *minibatch)
        result = step(*numbers, *(x.numpy() for x in minibatch))
        np.testing.assert_allclose(result, slow.detach(), rtol=1e-4, atol=1e-6)
        assert slow[script.METRICS.index("clip_fraction")] > 0
        for p, q, was in zip(plain.parameters(), fast.parameters(), before):
            torch.testing.assert_close(q, p, atol=2e-6, rtol=1e-5)
            assert (p - was).abs().max() > 1e-5
        for agent in (plain, fast, old):
            agent.obs_moments.update(minibatch[0] + i)


class Sgd(nn.Module):
    """Another optimizer, with momentum, as somebody may write it."""

    def __init__(self, parameters):
        super().__init__()
        self.trained = list(parameters)
        zeros = [nn.Parameter(torch.zeros_like(p), requires_grad=False) for p in self.trained]
        self.momentum = nn.ParameterList(zeros)

    @torch.no_grad()
    def step(self, learning_rate):
        for p, m in zip(self.trained, self.momentum):
            m.mul_(0.9).add_(p.grad)
            p.add_(m, alpha=1.0).mul_(1.0)
            p -= (1 - learning_rate) * m


class Layers(nn.Module):
    """A network with normalised layers, dropout and other activations."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(O, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16),
            nn.SiLU(), nn.Linear(16, 1), nn.Softplus(),
        )  # fmt: skip
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return self.net(x).squeeze(-1)


def huber(model, x, y):
    return -nn.functional.huber_loss(model(x), y)


def rpo(model, x, y):
    """Robust policy optimization's noise on the mean."""
    z = torch.empty_like(y).uniform_(-0.5, 0.5)
    return -(model(x) + z - y).square().mean()


def odd(model, x, y):
    """Results in pairs, views, constants that change, other types, and chance."""
    var, mean = torch.var_mean(x * torch.tensor(0.5), 0)
    count = torch.zeros_like(y)  # a constant, but for the next line
    count.add_((y > 1).float())
    order = torch.rand_like(y).sort()[0][:O]
    z = torch.cat([mean + order, var.view(1, O).flatten()]) ** 3
    z = torch.where(z > 0, z, nn.functional.softplus(z)).sum() / (x.argmax(1).float().sum() + 1)
    return z - ((model(x) - y) * count).abs().sum() + (y * y.flip(0)).mean()


def layers_of_all_kinds(model, x, y):
    """Some have a result that is None, count in integers, or sum over no axis."""
    model.count += 1
    z = nn.functional.conv1d(x[:, None], model.net[0].weight[:2, None]).flatten(1).sum(1)
    z = z * torch.rsub(y, 1, alpha=2) * y.relu().bool() / model.count
    return z.square().sum(dim=()) / 100 + model(x).mean()


def in_place(model, x, y):
    """Indices, shapes and columns changed in place, and a solver that fails on zeros."""
    columns = torch.zeros(len(y), 2)
    columns[:, 0] += y
    columns[:, 1] += x[:, 0]
    cov = torch.eye(O).addmm_(x.T, x)
    z = torch.linalg.solve(cov, x[torch.arange(O) % 2].clone().unsqueeze_(0).squeeze_(0))
    return model(x)[y.argsort()[:4]].sum() + columns.square().mean() + z.sum()


@pytest.mark.parametrize("objective", [huber, rpo, odd, layers_of_all_kinds, in_place])
def test_whatever_a_copy_computes_is_replayed(objective):
    """From the same random numbers, to rounding; the generator ends where PyTorch leaves it."""

    def step(model, optimizer, learning_rate, x, y):
        model.zero_grad()
        value = objective(model, x, y)
        value.backward()
        optimizer.step(learning_rate)
        return torch.stack([value, y[1]])

    torch.manual_seed(1)
    models = [Layers(), Layers()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [Sgd(model.parameters()) for model in models]
    torch.manual_seed(2)
    inputs = 0.0, ppo.zeros(64, O), ppo.zeros(64)
    replay = ppo.Replay(True, partial(step, models[1], optimizers[1]), *inputs)
    draw = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(draw, torch.rand(3))  # recording has drawn nothing
    rng = np.random.default_rng(1)
    for i in range(6):  # calls 1, 2 and 4 are compared, which draws nothing either
        x, y = rng.normal(size=(64, O)).astype("f"), rng.normal(size=64).astype("f")
        torch.manual_seed(i)
        slow = step(models[0], optimizers[0], torch.tensor(0.01), *map(torch.tensor, (x, y)))
        expected, state = slow.detach().clone(), torch.get_rng_state()
        torch.manual_seed(i)
        np.testing.assert_allclose(replay(0.01, x, y), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.get_rng_state(), state)
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def branch(model, x, y):
    return model(x).mean() if y.sum() > 0 else y.mean()


def item(model, x, y):
    return model(x).mean() * y.sum().item()


def nonzero(model, x, y):
    return model(x)[y > 0].mean()


@pytest.mark.parametrize("objective", [branch, item, nonzero])
def test_what_reads_values_is_refused_with_its_line(objective):
    with pytest.raises(ppo.Stop) as stop:
        ppo.Replay(True, partial(objective, Layers()), ppo.zeros(8, O), ppo.zeros(8))
    assert stop.value.code == 2 and "--no-compile" in str(stop.value)
    line = objective.__code__.co_firstlineno + 1
    assert f"test_replay.py, line {line}, `return" in str(stop.value)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_that_make_their_state_while_stepping_are_refused(optimizer):
    model = Layers()
    optimizer = optimizer(model.parameters(), lr=0.1)

    def step(model, x, y):
        optimizer.zero_grad()
        huber(model, x, y).backward()
        optimizer.step()
        return y.sum()

    with pytest.raises(ppo.Stop, match=r"optimizer\..*--no-compile") as stop:
        ppo.Replay(True, partial(step, model), ppo.zeros(8, O), ppo.zeros(8))
    assert stop.value.code == 2


SUM = dict(n=torch.zeros(()), kept=[])
SPACE = SimpleNamespace(calls=[0], last=None)
CRITIC = nn.Linear(1, 1)


def sum_outside(model, x):
    SUM["n"] += x.sum()


def average_outside(model, x):
    with torch.no_grad():
        CRITIC.weight.lerp_(model.log_std.mean().view(1, 1), 0.1)


def out_outside(model, x):
    torch.add(x.sum(), 1, out=SUM["n"])


def kept_in_a_list(model, x):
    SUM["kept"].append(model.log_std.detach() * 2)


def kept_in_a_space(model, x):
    SPACE.last = (x + 1)[0]


def counted_in_a_space(model, x):
    SPACE.calls[0] += 1


def replaced_by_data(model, x):
    model.log_std.data = 0.9 * model.log_std.data


@pytest.mark.parametrize(
    "change, words",
    [
        (sum_outside, 'line .*SUM."n".* changes a tensor that no state_dict.. has'),
        (average_outside, "line .*lerp_.* changes a tensor that no state_dict.. has"),
        (out_outside, "line .*out=SUM.* changes a tensor that no state_dict.. has"),
        (kept_in_a_list, r"step\(\) changes SUM of Python"),
        (kept_in_a_space, r"step\(\) changes SPACE of Python"),
        (counted_in_a_space, r"step\(\) changes SPACE of Python"),
        (replaced_by_data, r"step\(\) changes _parameters of Python"),
    ],
)
def test_what_is_kept_outside_the_modules_is_refused(change, words):
    def step(model, x):
        change(model, x)
        return x.sum()

    with pytest.raises(ppo.Stop, match=f"{words}.*: use --no-compile") as stop:
        ppo.Replay(True, partial(step, learner(ppo)[1]), ppo.zeros(4))
    assert stop.value.code == 2


def test_gradients_may_be_used_after_a_call():
    """As by a step of the optimizer, or a norm, in train(); comparing leaves them, too."""
    rows, x = [], ppo.zeros(8, O)
    for compile in (False, True):
        args, agent, adam = learner(ppo)

        def step(agent, x):
            agent.zero_grad()
            agent(x)[1].square().mean().backward()
            return x.sum()

        replay, rng = ppo.Replay(compile, partial(step, agent), x), np.random.default_rng(1)
        for _ in range(5):
            replay(rng.normal(size=(8, O)))
            agent.log_std.grad = torch.zeros(A)
            for p in agent.actor.parameters():
                p.grad = torch.zeros_like(p)
            adam.step(torch.tensor(0.01))
        rows.append([x.clone() for x in agent.state_dict().values()])
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_frozen_layers_stay_as_they_are(script):
    torch.manual_seed(1)
    args = script.Args()
    agent = script.Agent(O, A, args)
    agent.critic[0].requires_grad_(False)
    before = agent.critic[0].weight.clone(), agent.critic[2].weight.clone()
    adam = script.Adam(agent.parameters(), args.adam_eps)
    minibatch = [x.numpy() for x in minibatch_of(script, agent, 64)]
    inputs = 1e-3, *coefficients(args), *minibatch
    step = script.Replay(True, partial(script.update, agent, adam, args), *inputs)
    for _ in range(3):
        step(*inputs)
    assert torch.equal(before[0], agent.critic[0].weight)
    assert not torch.equal(before[1], agent.critic[2].weight)


def test_gradients_that_add_up_over_calls_stop_the_run():
    _, agent, _ = learner(ppo)

    def step(agent, x):
        agent(x)[1].square().mean().backward()
        return x.sum()

    replay = ppo.Replay(True, partial(step, agent), ppo.zeros(8, O))
    with pytest.raises(ppo.Stop, match=r"step\(\) differs in agent.critic.*grad"):
        for _ in range(4):
            replay(np.ones((8, O)))


def test_what_changes_late_is_seen_by_a_later_comparison():
    scale = [1.0]
    replay = ppo.Replay(True, lambda x: x.sum() * scale[0], ppo.zeros(4))
    replay.calls = 2**14 - 2
    replay(np.ones(4))
    scale[0] = 1.001  # far less than the 1% of a change of state
    with pytest.raises(ppo.Stop, match="differs in result.0"):
        for _ in range(2):
            replay(np.ones(4))


def through_numpy(model, x, y, calls):
    return model(x).mean() * float(y.detach().numpy().mean())


def counter(model, x, y, calls):
    calls.append(0)
    return model(x).mean() / len(calls)


def rebound(model, x, y, calls):
    """State that is a new tensor every time, as `self.average = 0.9 * self.average + ...`."""
    model.average = 0.9 * getattr(model, "average", torch.zeros(())) + y.mean()
    return model(x).mean() + model.average


def kept_out_of_sight(model, x, y, calls, kept=[]):  # noqa: B006
    """As by a closure: nothing that Replay looks at leads there."""
    z = model(x).mean() + sum(kept)
    kept[:] = [y.mean()]
    return z


@pytest.mark.parametrize("objective", [through_numpy, counter, rebound, kept_out_of_sight])
def test_what_the_recording_cannot_see_stops_the_run(objective):
    """Within the first calls: the comparison names what differs and says --no-compile."""
    model, calls = Layers(), []
    model.net[3].p = 0.0
    optimizer = Sgd(model.parameters())

    def step(model, optimizer, x, y):
        model.zero_grad()
        value = objective(model, x, y, calls)
        value.backward()
        optimizer.step(0.01)
        return value

    rng = np.random.default_rng(1)
    with pytest.raises(ppo.Stop, match="--no-compile") as stop:
        replay = ppo.Replay(True, partial(step, model, optimizer), ppo.zeros(8, O), ppo.zeros(8))
        for _ in range(4):
            replay(rng.normal(size=(8, O)), 1 + rng.normal(size=8))
    assert stop.value.code == (2 if objective is rebound else 1)


def test_a_large_count_beside_the_weights_hides_no_difference():
    """Late in a run the moments have taken in a million observations."""

    def step(agent, x):
        agent.log_std.data += float(x.numpy().mean())
        return x.sum()

    _, agent, _ = learner(ppo)
    agent.obs_moments.count.fill_(1e6)
    replay = ppo.Replay(True, partial(step, agent), ppo.zeros(8))
    with pytest.raises(ppo.Stop, match="agent.log_std: use --no-compile"):
        for _ in range(4):
            replay(np.full(8, 0.1))


def test_a_sample_at_the_edge_of_the_clip_does_not_stop_a_run():
    """One comparison may fail, where rounding decides; the calls next to it do not."""

    def step(agent, x):
        agent.log_std.data += x.mean()
        return (x > 0.5).float().mean() + extra[0]

    _, agent, _ = learner(ppo)
    extra = [0.0]
    replay = ppo.Replay(True, partial(step, agent), ppo.zeros(8))
    for call in range(1, 9):
        extra[0] = 0.125 if call == 4 else 0.0
        replay(np.full(8, 0.1))
    assert replay.retry == 5


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_saturated_units_do_not_stop_a_run(script):
    """Where tanh is 1 but for rounding, its derivative 1 - tanh^2 is nothing but rounding."""
    args, agent, adam = learner(script)
    agent.critic[2].bias.data.uniform_(8, 9)
    *others, value = (x.numpy() for x in minibatch_of(script, agent, 64))
    inputs = 1e-3, *coefficients(args), *others, value
    step = script.Replay(True, partial(script.update, agent, adam, args), *inputs)
    for _ in range(64):
        step(*inputs[:-2], 1e5 + inputs[-2], value)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_with_and_without_compile_a_run_is_the_same_but_for_rounding(script):
    rows = {}
    for compile in (True, False):
        args = dict(num_envs=N, num_steps=T, minibatch_size=12, total_timesteps=3 * T * N)
        run = FakeRun()
        script.train(script.Args(**args, compile=compile), FakeEnvs("f"), run)
        rows[compile] = run.rows
    for fast, plain in zip(rows[True], rows[False]):
        assert fast == pytest.approx(plain, rel=1e-3, abs=1e-5)


MLP = "layers += [layer, nn.Tanh()]"
ADAM = "    adam.step(learning_rate)\n"
LOG_RATIO = "    log_ratio = pi.log_prob(actions)"
CLIPPED = "    clip_fraction = (change.abs() > clip_coef).float().mean()\n"
RNG = "        rng = generator(args.seed, iteration)\n"
COPIES = {  # what is changed in a copy: the exit code, and words of the line that says why
    "relu": (MLP, "layers += [layer, nn.ReLU()]", 0, ""),
    "layer norm": (MLP, "layers += [layer, nn.LayerNorm(m)]", 0, ""),
    "dropout": (MLP, "layers += [layer, nn.Tanh(), nn.Dropout(0.1)]", 0, ""),
    "huber loss": (
        "error = (value - value_target).square()",
        'error = nn.functional.huber_loss(value, value_target, reduction="none")',
        0, "",
    ),
    "noise on the mean": (
        LOG_RATIO,
        f"    pi.base_dist.loc = pi.base_dist.loc + 0.1 * torch.rand_like(actions)\n{LOG_RATIO}",
        0, "",
    ),
    "branch on a value": (
        ADAM, f"    if value_loss < 1e9:\n    {ADAM}", 2, "`if value_loss < 1e9:`",
    ),
    "another optimizer": (
        ADAM, "    torch.optim.SGD(agent.parameters(), lr=3e-4, maximize=True).step()\n",
        2, "torch.optim.SGD",
    ),
    "read by numpy": (
        "    ratio = log_ratio.exp()\n",
        "    ratio = log_ratio.exp() * float(value_target.numpy().mean())\n",
        1, "update() differs in",
    ),
    "counter": (
        ADAM,
        "    args.calls = getattr(args, 'calls', 0) + 1\n"
        "    adam.step(learning_rate / args.calls)\n",
        2, "update() changes calls",
    ),
    "gradients accumulated": (
        ADAM,
        "    args.calls = getattr(args, 'calls', 0) + 1\n"
        "    if args.calls % 64 == 0:\n"
        "        adam.step(learning_rate)\n",
        2, "update() changes calls",
    ),
    "a tensor kept for train()": (
        CLIPPED, f"{CLIPPED}    agent.last_kl = kl.detach()\n", 2, "update() changes last_kl",
    ),
    "a sum in a tensor": (
        CLIPPED, f"    args.kl = getattr(args, 'kl', torch.zeros(())).add_(kl.detach())\n{CLIPPED}",
        2, "update() changes kl of",
    ),
    "an entry of a list": (
        ADAM, f"    agent.norms = [agent.log_std.grad.norm()]\n{ADAM}", 2, "update() changes norms",
    ),
    "a set": (
        ADAM, f"    agent.seen = {{agent.log_std.grad, *getattr(agent, 'seen', ())}}\n{ADAM}",
        2, "update() changes seen",
    ),
    "a tuple": (CLIPPED, f"{CLIPPED}    agent.pair = (kl.detach(),)\n", 2, "update() changes pair"),
    "an object": (CLIPPED, f"{CLIPPED}    agent.pi = pi\n", 2, "update() changes pi"),
    "an array": (
        ADAM, f"    agent.seen = np.append(getattr(agent, 'seen', ()), 1.0)\n{ADAM}",
        2, "update() changes seen",
    ),
    "a warning": (ADAM, f"    warnings.warn('of the user')\n{ADAM}", 0, ""),
    "a coefficient that train() changes": (
        RNG, f"{RNG}        args.ent_coef = 1e-6 * iteration\n", 1, "ent_coef is not what it was",
    ),
    "another distribution": (
        "Independent(Normal(self.actor(features), self.log_std.exp()), 1)",
        "torch.distributions.MultivariateNormal(self.actor(features), self.log_std.exp().diag())",
        1, "base_dist",
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", [ppo])
@pytest.mark.parametrize("name", COPIES)
def test_a_changed_copy_runs_or_says_why_not(script, name, tmp_path):
    """What is refused is refused before there is a run directory; nothing is wrong silently."""
    before, after, code, words = COPIES[name]
    source = (ROOT / f"{script.__name__}.py").read_text()
    assert source.count(before) == 1
    copy = tmp_path / "copy.py"
    copy.write_text(source.replace(before, after))
    argv = "--env-id InvertedPendulum --num-steps 256 --total-timesteps 512 --run-dir run".split()
    program = Program(copy, tmp_path / "cwd", *argv)
    assert program.wait() == code, program.err
    assert words in program.err
    if code == 2:
        assert program.err.count("\n") == 1 and "--no-compile" in program.err
        assert not list((tmp_path / "cwd").iterdir())
    if code and name != "another distribution":
        assert Program(copy, tmp_path / "cwd2", *argv, "--no-compile").wait() == 0


COEF = 1.0


def test_a_global_number_that_changes_stops_the_run(monkeypatch):
    """As `global COEF; COEF *= 0.99` in a copy's train()."""

    def step(x):
        return x.sum() * COEF

    replay = ppo.Replay(True, step, ppo.zeros(4))
    replay(np.ones(4))
    monkeypatch.setitem(globals(), "COEF", 2.0)
    with pytest.raises(ppo.Stop, match="COEF is not what it was"):
        replay(np.ones(4))


def test_a_module_given_by_name_is_found():
    """As one that is given by position."""

    def step(x, agent):
        with torch.no_grad():
            agent.log_std += x.mean()
        return agent.log_std.sum()

    _, agent, _ = learner(ppo)
    before = agent.log_std.detach().clone()
    replay = ppo.Replay(True, partial(step, agent=agent), ppo.zeros(4))
    for i in range(1, 6):
        replay(np.ones(4))
        torch.testing.assert_close(agent.log_std.detach(), before + i)


def test_two_modules_of_a_kind_are_both_put_back():
    """As an agent and its average: recording and comparing leave either as it was."""

    def step(agent, average, x):
        for a, p in zip(average.parameters(), agent.parameters()):
            p.data.add_(x.mean())
            a.data.mul_(0.9).add_(0.1 * p.data)
        return x.mean()

    agents = [learner(ppo, seed)[1] for seed in (1, 2)]
    before = [{k: x.clone() for k, x in agent.state_dict().items()} for agent in agents]
    replay = ppo.Replay(True, partial(step, *agents), ppo.zeros(8))
    for agent, state in zip(agents, before):
        assert all(torch.equal(x, state[k]) for k, x in agent.state_dict().items())
    for i in range(1, 4):
        replay(np.full(8, 0.5))
        for name, p in agents[0].named_parameters():
            torch.testing.assert_close(p, before[0][name] + 0.5 * i)
            average = before[1][name]
            for j in range(1, i + 1):
                average = 0.9 * average + 0.1 * (before[0][name] + 0.5 * j)
            torch.testing.assert_close(agents[1].get_parameter(name), average)
