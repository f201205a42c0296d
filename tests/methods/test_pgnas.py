"""PGNAS: what a step does, that the data speak, that a search ends, repeats itself and resumes, and who is chosen."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesarch.data import SEARCH_SPLITS, Batch, DataConfig, as_examples, split, splits_on
from bayesarch.engine import Clock, Engine, EngineConfig, Interrupted, Observer, Setting, pack, recalibrate
from bayesarch.functional import Streams, bernoulli
from bayesarch.methods.candidates import Scorer, matched, within
from bayesarch.methods.pgnas import PGNAS, PGNASConfig
from bayesarch.nets import kept_by, supernet_from
from bayesarch.posteriors import ChannelMasks
from bayesarch.testing import check_posterior
from pretended import pretended_card

CLOCK = Clock(epoch=0, step=0, epochs=10, steps_per_epoch=10, weight_lr=0.1)


class TwoSources(nn.Module):
    """Half of what goes in carries the label, half carries noise; a layer of its own reads each."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.noise = nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(torch.relu(self.signal(x[:, :6]) + self.noise(x[:, 6:])))


def engine(folder, *, seed=0, observer=None, n=600, epochs=6, device="cpu", **settings) -> Engine:
    rng = np.random.default_rng(0)
    features = rng.choice([-1.0, 1.0], size=(n, 12)).astype(np.float32)
    labels = (features[:, :6].sum(1) + 0.1 * rng.normal(size=n) > 0).astype(int)
    examples, streams = as_examples(features[:, None, None, :], labels, layout="chw"), Streams(seed, device)
    data = DataConfig(fractions=(0.6, 0.2, 0.1, 0.1), flip=False, crop=0)
    partition = split(examples, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - initial weights of a test's own network
        net = supernet_from(TwoSources(), input_shape=(1, 1, 12), classes=2).to(device)
    method = PGNAS(net.space, PGNASConfig(**{"candidates": 12, "controls": 4, **settings}))
    setting = Setting(1, partition.sizes, 32, partition.sizes["weights"] // 32, torch.device(device))
    return Engine(
        method=method,
        net=net,
        state=method.init(setting, streams=streams),
        data=splits_on(examples, partition, SEARCH_SPLITS, config=data, device=torch.device(device)),
        config=EngineConfig(
            epochs=epochs, closing_epochs=0, batch_size=32, lr=0.05, weight_decay=0.0, nesterov=True, recalibrate=False
        ),
        streams=streams,
        checkpoint=folder / "last.safetensors",
        observer=observer or Observer(),
    )


def test_a_search_ends_on_a_card_as_on_the_cpu_and_its_steps_keep_the_host_going(tmp_path, monkeypatch):
    here = engine(tmp_path / "cpu", epochs=2).run()
    with pretended_card(monkeypatch) as marks:
        there = engine(tmp_path / "card", epochs=2, device="cuda").run()
        assert there.state.phi.is_cuda
        assert torch.allclose(there.state.phi.cpu(), here.state.phi, atol=1e-4)
        assert not [wait for wait in marks.waits if "Engine._step" in wait.asked_by]


def test_the_data_speak_where_half_of_the_input_is_noise(tmp_path):
    """Drop rates of useful and useless groups separate; useful ones lie far below what the entropy would make of them.

    The useless group lies below it as well: on few examples noise can be learned by heart, which the training loss
    rewards.
    """
    for seed in range(3):
        done = engine(tmp_path, seed=seed, n=2000, epochs=12, gate_lr=5.0).run()
        rates = dict(zip([c.name for c in done.net.space.choices], torch.sigmoid(done.state.phi).tolist(), strict=True))
        assert rates["noise"] > 10 * rates["signal"], rates
        assert rates["noise"] > rates["signal"] + 0.05, rates
        assert rates["signal"] < torch.sigmoid(done.state.idle)[0].item() / 2
        assert done.method.summary(done.state)["beyond_drift"] > 0


def test_a_step_descends_cross_entropy_and_kl_over_n(tmp_path):
    """Gradients of weights and drop logits equal those of the objective written out."""
    made = engine(tmp_path, kl_n=50.0, l2=2.0, c=0.5, lambda_d=0.3, gate_lr=1.0)
    batch: Batch = made.feeders["weights"].next()
    state, _ = made.method.step(made.state, made.net, {"weights": batch}, streams=Streams(3), clock=CLOCK)
    weight = made.net.net.signal.weight
    found = weight.grad.clone()

    phi = made.state.phi.clone().requires_grad_()
    channels = torch.cat([phi[s].expand(len(c.options)) for s, c in enumerate(made.net.space.choices)])
    gates = bernoulli.keep_gates(channels, (len(batch.labels),), tau=0.2, generator=Streams(3)["gates"])
    loss = nn.functional.cross_entropy(made.net(batch.images, gates[:, None]), batch.labels)
    pi, norms = torch.sigmoid(channels), made.net.channel_sqnorm()
    kl = (0.5 * 2.0 * (1 - pi) * norms + 0.3 * (pi * pi.log() + (1 - pi) * (1 - pi).log())).sum()
    by_weight, by_phi = torch.autograd.grad(loss + kl / 50.0, [weight, phi])
    assert torch.allclose(found, by_weight, atol=1e-6)
    assert torch.allclose(state.phi, made.state.phi - 0.1 * 1.9 * by_phi, atol=1e-6), "Nesterov's first step"


def test_the_drift_kept_beside_is_the_drift_formula(tmp_path):
    made = engine(tmp_path, epochs=3, deletion=0.7, gate_lr=1.0)
    rates: list[float] = []
    made.observer.on_step = lambda place: None
    original = made.method.step

    def step(state, net, batches, *, streams, clock):
        rates.append(clock.weight_lr)
        return original(state, net, batches, streams=streams, clock=clock)

    made.method.step = step
    made.run()
    for position, choice in enumerate(made.net.space.choices):
        curve = bernoulli.drift(0.1, rates, channels=len(choice.options), n=made.state.n, u=0.7)
        assert torch.sigmoid(made.state.idle)[position].item() == pytest.approx(curve[-1], rel=1e-4)


def test_the_length_scale_aims_at_a_weight_decay(tmp_path):
    made = engine(tmp_path, weight_decay=1e-3)
    assert made.state.n == len(made.data["weights"].labels)
    assert made.state.l2 == pytest.approx(1e-3 * made.state.n / 2 / 0.9)
    assert engine(tmp_path, l2=7.0).state.l2 == 7.0


def test_the_best_candidate_is_chosen_on_the_ranking_split_and_scored_on_another(tmp_path):
    done = engine(tmp_path, candidates=20).run()
    state, method = done.state, done.method
    accuracies = [accuracy for _, accuracy, _ in state.ranked]
    best = method.found(state)
    assert accuracies[state.best] == max(accuracies)
    assert torch.equal(state.live, done.net.one_hot(best)[0, 0].bool())
    again, loss = Scorer(done.net, done.data, None).right(best, "architecture")
    assert torch.equal(again, state.right[state.best])
    assert loss == pytest.approx(state.ranked[state.best][2])
    small = done.net.inherit(best).eval()
    images = done.data["selection"].images[:20]
    done.net.eval()
    assert torch.allclose(small(images), done.net(images, done.net.one_hot(best)), atol=1e-5)
    rows = {row["name"]: row for row in state.rows}
    assert rows["best candidate"]["architecture"]["mean"] == pytest.approx(max(accuracies))
    assert rows["all candidates"]["architecture"]["mean"] == pytest.approx(sum(accuracies) / 20)
    assert rows["best candidate"]["selection"]["n"] == len(done.data["selection"].labels)
    assert rows["whole network"]["params_kept"] == 1.0
    assert rows["best candidate"]["params"] == sum(p.numel() for p in small.parameters())


def test_of_equal_candidates_the_smallest_wins(tmp_path):
    made = engine(tmp_path)
    masks = made.method.posterior(made.state).sample(6, seed=0)
    sizes = [sum(p.numel() for p in made.net.inherit(arch).parameters()) for arch in masks]
    assert len(set(sizes)) > 1
    assert made.method._best(made.net, masks, [0.5] * 6) == sizes.index(min(sizes))
    assert made.method._best(made.net, masks, [0.5, 0.6, 0.5, 0.5, 0.5, 0.5]) == 1
    assert made.method._best(made.net, [masks[2]] * 3, [0.5] * 3) == 0, "of equals in all, the first"


def test_random_masks_have_as_many_parameters_as_the_candidates(tmp_path):
    made = engine(tmp_path)
    rates = [0.95, 0.3, 0.6]
    masks = ChannelMasks(made.net.space, rates).sample(400, seed=0)
    params = np.mean([sum(p.numel() for p in made.net.inherit(a).parameters()) for a in masks])
    blind = matched(made.net.space, made.net.costs, masks, seed=1).sample(400, seed=2)
    assert np.mean([sum(p.numel() for p in made.net.inherit(a).parameters()) for a in blind]) == pytest.approx(
        params, rel=0.03
    )


def test_recalibrated_norms_and_fine_tuning_are_rows_of_their_own(tmp_path):
    made = engine(tmp_path)
    made.config = made.config.model_copy(update={"closing_epochs": 2})
    done = made.run()
    rows = {row["name"]: row for row in done.state.rows}
    steps = 2 * done.steps_per_epoch
    assert {"best candidate", "best candidate, norms recalibrated"} < set(rows)
    tuned = rows[f"best candidate, {steps} steps of fine-tuning"]
    assert tuned["params"] == rows["best candidate"]["params"]
    small = done.net.inherit(done.method.found(done.state)).eval()
    split = done.data["selection"]
    right = small(split.plain(torch.arange(len(split))).images).argmax(1) == split.labels
    assert tuned["selection"]["mean"] == pytest.approx(float(right.double().mean()))


def test_recalibration_is_for_one_mask_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)  # noqa: TID251 - initial weights of a test's own network
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
                          nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))  # fmt: skip
    net = supernet_from(plain, input_shape=(1, 4, 4), classes=2)
    rng = np.random.default_rng(0)
    examples = as_examples(rng.normal(size=(80, 1, 4, 4)).astype(np.float32), np.arange(80) % 2, layout="chw")
    config = DataConfig(flip=False, crop=0)
    data = splits_on(examples, split(examples, config), SEARCH_SPLITS, config=config, device=torch.device("cpu"))
    arch = ChannelMasks(net.space, [0.5] * 3).sample(1, seed=3)[0]
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    told = Scorer(net, data, None, recalibrated=arch)
    assert all(torch.equal(value, before[name]) for name, value in net.net.state_dict().items())
    told.masked.mask(kept_by(arch))
    recalibrate(net, net.one_hot(arch), data["weights"], batch_size=64)
    net.eval()
    images = data["selection"].plain(torch.arange(8)).images
    assert torch.allclose(told.masked(images), net(images, net.one_hot(arch)), atol=1e-5)


def test_a_ranking_broken_off_goes_on_where_it_was(tmp_path):
    whole = engine(tmp_path / "a", candidates=9).run()
    made = engine(tmp_path / "b", candidates=9)
    steps, asked = 6 * made.steps_per_epoch, []

    def stop() -> bool:
        """Stop at the fourth candidate: asked after every step, and after every candidate."""
        asked.append(1)
        return len(asked) == steps + 4

    made.observer.should_stop = stop
    with pytest.raises(Interrupted):
        made.run()
    again = engine(tmp_path / "b", candidates=9).restore()
    assert len(again.state.ranked) == 4
    again.run()
    (tensors, values), (others, other_values) = pack(whole.state), pack(again.state)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(other_values))


def test_when_the_time_is_over_it_ranks_no_further(tmp_path):
    made = engine(tmp_path, candidates=9, controls=2)
    assert made.method.last_passes(made.state) == 11
    asked = iter([0.2, 0.5, 0.9, 1.0, 1.1])
    over = replace(CLOCK, last=True, gone=lambda: next(asked))
    state, _ = made.method.boundary(made.state, made.net, made.data, streams=made.streams, clock=over)
    assert next(asked) == 1.1, "four were ranked"
    assert len(state.ranked) == len(state.right) == 4
    assert state.ranked[state.best][1] == max(accuracy for _, accuracy, _ in state.ranked)
    everything, _ = made.method.boundary(
        made.state, made.net, made.data, streams=made.streams, clock=replace(CLOCK, last=True)
    )
    assert everything.ranked[:4] == state.ranked
    assert len(everything.ranked) == 9
    said, unsaid = (made.method.summary(end)["warnings"] for end in (state, everything))
    assert [line for line in said if line not in unsaid] == ["there was time to rank 4 candidates of 9"]


def test_scores_in_bf16_are_nearly_those_in_fp32(tmp_path):
    exact, coarse = (engine(tmp_path / p, score_precision=p).run() for p in ("fp32", "bf16"))
    a, b = (np.array([accuracy for _, accuracy, _ in e.state.ranked]) for e in (exact, coarse))
    assert np.abs(a - b).max() <= 0.05
    assert exact.state.rows[3]["name"] == "mode"
    assert exact.state.rows[3] == coarse.state.rows[3], "what is reported of one network is always exact"


@pytest.mark.parametrize("stop_at", [3, 25])
def test_it_repeats_itself_and_resumes_bit_for_bit(tmp_path, stop_at):
    whole, again = engine(tmp_path / "a").run(), engine(tmp_path / "b").run()
    assert again.method.posterior(again.state).to_json() == whole.method.posterior(whole.state).to_json()
    steps: list[int] = []
    watch = Observer(on_step=lambda place: steps.append(1), should_stop=lambda: len(steps) == stop_at)
    broken = engine(tmp_path / "c", observer=watch)
    with pytest.raises(Interrupted):
        broken.run()
    resumed = engine(tmp_path / "c").restore().run()
    (tensors, values), (others, other_values) = pack(whole.state), pack(resumed.state)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert values == other_values
    mine, theirs = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_its_posterior_keeps_the_contract(tmp_path):
    done = engine(tmp_path).run()
    check_posterior(done.method.posterior(done.state))


def test_without_data_to_speak_the_summary_warns(tmp_path):
    done = engine(tmp_path, epochs=1, kl_n=5e5).run()
    said = done.method.summary(done.state)
    assert said["beyond_drift"] == 0.0
    assert "drift curve" in said["warnings"][0]
    pi = torch.sigmoid(done.state.phi)[2].item()
    expected = -8 * (pi * math.log(pi) + (1 - pi) * math.log(1 - pi))
    assert said["group_entropies"]["out"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [0.95, 0.6, 0.3])
def test_candidates_keep_budgets_as_hard_limits(tmp_path, share):
    """Loose ones change nothing; tight ones raise all drop logits together, no more than it takes."""
    made = engine(tmp_path)
    costs, posterior = made.net.costs, ChannelMasks(made.net.space, [0.9] * 3)
    budget = share * costs.params
    masks, raised = within(costs, posterior, {"params": budget}, 50, seed=0)
    sizes = [sum(p.numel() for p in made.net.inherit(arch).parameters()) for arch in masks]
    assert len(masks) == 50
    assert max(sizes) <= budget
    assert (raised > 0) == (share < 0.9)
    if raised:
        assert np.mean(sizes) > 0.7 * budget, "and no smaller than it takes"
    free, none = within(costs, posterior, {}, 50, seed=0)
    assert (free, none) == (posterior.sample(50, seed=0), 0.0)
    both, _ = within(costs, posterior, {"params": budget, "macs": 0.25 * costs.macs}, 20, seed=0)
    params, macs = costs.of(np.stack([made.net.one_hot(arch)[0, 0].bool().numpy() for arch in both]))
    assert params.max() <= budget
    assert macs.max() <= 0.25 * costs.macs
