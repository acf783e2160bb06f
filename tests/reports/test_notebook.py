"""What runs, circuits, prompts, analyses and outcomes look like in a notebook and at a terminal's prompt."""

import html
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.analysis import Analysis
from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.probing import Estimate, Outcome, Scatter, Table, Text, Threshold, Verdict
from icl_interp.records import Run, Runs
from icl_interp.tasks import LinearRegression, Prompt, UnavailableTask
from icl_interp.testing import plant
from icl_interp.weights import initial_weights
from icl_interp_reports.prompts import prompt_picture
from icl_interp_reports.svg import curve_svg, heatmap_svg

HOSTILE = "<script>alert(1)</script>\x1b[31m\n</style> \"onload='x' {{ 7 * 7 }} \u202e\udcff" + "x" * 10_000
TASK = LinearRegression(3, 8)
VOID = {"meta", "rect", "path", "polyline"}


class Tags(HTMLParser):
    """Every tag, and whether they are balanced."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@cache
def run():
    return icl.train(TASK, n_heads=2, steps=30, n_records=12, progress=False)


@cache
def analysis():
    return icl.analyze(run(), budget=100)


@cache
def population():
    configs = [
        icl.TrainConfig(TASK, ModelConfig(3, n_heads=heads), steps=20, seed=seed, n_records=12)
        for heads in (1, 2)
        for seed in (0, 1)
    ]
    return icl.train_many(configs, progress=False)


def prompts(batch=5, task=TASK, **how):
    return task.sample(batch, generator=torch.Generator().manual_seed(0), **how)


def untrained(**sizes):
    config = ModelConfig(3, **sizes)
    return Run(config, initial_weights(config, torch.Generator().manual_seed(0)))


def hostile(text):
    verdict = Verdict(text, text, "fails", text, Estimate(1.0, 0.0, 2.0, text), Threshold(text, low=0.0))
    blocks = (
        Table((text,), ((text,),), text, text, first_screen=True),
        Text(text),
        Scatter(np.ones(1), np.ones(1), text),
    )
    done = Outcome(text, text, "done", None, blocks, (verdict,), about=text)
    task, versions = UnavailableTask(3, 8, 1, text), {text: text}
    opened = {"origin": text, "format": text, "assumed": (text, text), "versions": versions}
    changed = replace(analysis().provenance, task=task, task_from=text, **opened)
    of_run = Run(run().model_config, run().weights, task, **opened)
    return of_run, Analysis(changed, analysis().circuits, (done, Outcome(text, text, "failed", reason=text)))


def shown(thing):
    """The fragment, which has to be whole, harmless and by itself."""
    text = thing._repr_html_()
    tags = Tags(text)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    attributes = {attribute for _, found in tags.seen for attribute in found}
    assert not names & {"script", "link", "img", "iframe", "body", "html"}
    assert not attributes & {"id", "src", "href"}
    assert not any(a.startswith("on") for a in attributes)
    text.encode()
    return text


def said(thing):
    """What is left where a notebook strips styles and pictures: words in a row."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", shown(thing), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


# --- In a notebook ----------------------------------------------------------------------------------------------------


def test_a_run_shows_its_settings_its_loss_and_its_heads():
    text = shown(run())
    assert "one layer, 2 heads, d = 3, N = 1; step 30, seed 0" in text
    assert "LinearRegression(dim=3, length=8" in text
    assert "30 steps of 256 prompts, adam, lr 0.001" in text
    assert text.count("<polyline") == 1
    for omega in run().circuits().omega[0]:
        assert f"{omega:.4g}".replace("-", "−") in text


def test_a_run_of_which_little_is_known():
    text = shown(untrained())
    assert "not known: L and σ² did not come with the checkpoint" in text
    assert "<polyline" not in text


def test_what_was_assumed_is_told_of_runs_and_analyses():
    opened = {"format": "plain <arrays>", "assumed": ("d is 3.", "N is 1.")}
    of_analysis = Analysis(replace(analysis().provenance, **opened), analysis().circuits, analysis().outcomes)
    for thing in (replace(run(), **opened), of_analysis):
        assert "recognised as plain <arrays> model" in said(thing)
        assert "assumed d is 3. N is 1." in said(thing)
    assert "assumed" not in said(run())


@pytest.mark.parametrize(("sizes", "pictures"), [({}, 2 * 2), ({"n_layers": 2, "n_heads": 3}, 2 * 2 * 3)])
def test_circuits_show_kq_and_ov_of_every_head_of_every_layer(sizes, pictures):
    text = shown(untrained(**sizes).circuits())
    assert len(re.findall(r'aria-label="(?:KQ|OV) (?:layer \d, )?head \d', text)) == pictures
    assert "left out" in text  # what is inert


def test_several_responses_have_a_column_each():
    text = shown(untrained(n_outputs=2).circuits())
    assert "μ_0" in text
    assert "μ_1" in text


def test_an_analysis_shows_the_first_screen_and_every_claim():
    text = shown(analysis())
    for _, row in analysis().verdicts.iterrows():
        assert row.claim.replace("_", " ") in text
    assert "Heads" in text
    assert "Risk at L = 8" in text
    assert 'to_html("report.html")' in text.replace("&#34;", '"')


def test_what_was_not_measured_is_said():
    planted = icl.analyze(plant(TASK, roles=("positive", "negative")).run, probes=["dynamics"], budget=50)
    assert "needs the record of the training" in shown(planted)
    assert "skipped" in shown(planted["dynamics"])


def test_an_outcome_shows_its_claims_and_its_blocks():
    outcome = analysis()["circuit_pattern"]
    text = shown(outcome)
    assert outcome.title in text
    assert "off its diagonal" in text
    assert text.count('role="img"') >= 4
    assert "<details>" in shown(analysis()["dynamics"])  # curves, as numbers


def test_nothing_hostile_gets_through():
    of_run, of_analysis = hostile(HOSTILE)
    for thing in (of_run, of_analysis, *of_analysis):
        text = shown(thing)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "49" not in text
        assert "&lt;script&gt;" in text
        assert len(text) < 200_000


def test_without_pictures_and_styles_the_words_say_it():
    assert "300" not in said(run())
    assert f"loss {run().dynamics.loss[-1]:.4g} at the end; {len(run().dynamics.steps)} records" in said(run())
    for thing in (run(), run().circuits()):
        for omega in run().circuits().omega[0]:
            assert f"{omega:.4g}".replace("-", "−") in said(thing)
    assert "KQ of every head: rows are a key's coordinates, columns the query's; hatched is" in said(run().circuits())
    for _, row in analysis().verdicts.iterrows():
        assert f"{row.status.replace('_', ' ')} {row.claim.replace('_', ' ')} " in said(analysis())
    assert "fails" in said(hostile("x")[1])


def test_a_title_that_begins_the_words_is_not_said_twice():
    assert "KQ KQ" not in said(analysis())
    assert "KQ of every head" in said(analysis())


# --- Prompts in a notebook --------------------------------------------------------------------------------------------


def test_a_prompt_shows_its_sizes_its_ranges_and_the_first_three():
    prompt = prompts()
    text = said(prompt)
    assert "prompts 5, each with L = 8, d = 3, N = 1 numbers float32 on cpu" in text
    numbers = [f"{number(prompt.x):.4g}".replace("-", "−") for number in (torch.min, torch.max, torch.mean)]
    assert f"x covariates 5 × 8 × 3 {' '.join(numbers)} y responses 5 × 8 × 1 " in text
    assert "trouble" not in text
    assert "Prompts 3 of 5: rows x0 to y0, a column for each demonstration" in text
    pictures = re.findall(r'aria-label="Prompts (prompt \d, y_q = [^,]*), ', shown(prompt))
    assert pictures == [f"prompt {i}, y_q = {prompt.y_q[i, 0]:.3g}".replace("-", "−") for i in range(3)]
    assert "left out" in shown(prompt)


def test_the_pictures_are_the_prompts():
    prompt = prompts(2)
    picture = prompt_picture(prompt)
    np.testing.assert_array_equal(picture.matrices[..., :8], prompt.demonstrations.mT.numpy())
    np.testing.assert_array_equal(picture.matrices[:, :3, 8], prompt.x_q.numpy())
    assert np.isnan(picture.matrices[:, 3, 8]).all()
    assert picture.column_labels == (*"01234567", "q")
    assert picture.row_labels == ("x0", "x1", "x2", "y0")


def test_a_large_prompt_is_cut_and_says_so():
    x, y = torch.randn(4, 1_000, 30), torch.randn(4, 1_000, 9)
    prompt = Prompt(x, y, x[:, 0], y[:, 0])
    assert prompt_picture(prompt).matrices.shape == (1, 16 + 8, 40 + 1)
    assert len(heatmap_svg(prompt_picture(prompt))) < 60_000
    assert (
        "Prompts 1 of 4: rows x0 to y7, a column for each demonstration and one for the query, q, whose response is "
        "asked for and therefore hatched (so is NaN). Drawn are the first 16 of 30 covariates, the first 8 of 9 "
        "responses, the first 40 of 1,000 demonstrations."
    ) in said(prompt)
    assert ">q<" in shown(prompt)


def test_what_is_not_finite_is_counted_and_kept_out_of_the_ranges():
    prompt = prompts()
    prompt.x[0, 0, 0], prompt.x[1, 0, 0], prompt.y_q[:] = np.nan, np.inf, -np.inf
    for text in (said(prompt), str(prompt)):
        assert "NaN or infinite: 2 of 120" in text
        assert "NaN or infinite: 5 of 5" in text
        assert "nan" not in text
    assert f"{prompt.x[prompt.x.isfinite()].max():.4g}" in str(prompt)
    huge = Prompt(*(torch.full(shape, 1e308, dtype=torch.float64) for shape in ((1, 2, 1), (1, 2, 1), (1, 1), (1, 1))))
    assert "1e+308" in str(huge)
    assert "1e+308" in said(huge)


@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 8, 3), (0, 8, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((2, 3, 1), (2, 3, 2)),
        ((2, 3, 0), (2, 3, 1)),
        ((2, 3, 0), (2, 3, 0)),
        ((3, 5_000, 2), (3, 5_000, 1)),
    ],
)
def test_prompts_of_any_size_are_shown(shapes):
    x, y = map(torch.ones, shapes)
    prompt = Prompt(x, y, x[:, 0], y[:, 0])
    (batch, length, d), N = shapes[0], shapes[1][-1]
    words = f"L = {length:,}, d = {d}, N = {N}"
    assert f"prompts {batch}, each with {words} numbers float32 on cpu" in said(prompt)
    assert ("Prompts" in said(prompt)) == (batch * (d + N) > 0)
    assert repr(prompt) == f"<Prompt of {batch}: {words}; float32 on cpu>"
    assert len(str(prompt).splitlines()) == 6
    assert len(shown(prompt)) < 60_000


def test_numbers_of_every_kind_are_read():
    prompt = prompts()
    assert "; bfloat16 on cpu>" in repr(prompt.to(dtype=torch.bfloat16))
    assert "trouble" not in said(prompt.to(dtype=torch.bfloat16))
    assert "; float32 on cpu, float64 on cpu>" in repr(Prompt(prompt.x, prompt.y, prompt.x_q, prompt.y_q.double()))
    trained = Prompt(prompt.x.clone().requires_grad_(), prompt.y, prompt.x_q, prompt.y_q)
    assert said(trained) == said(prompt)
    assert said(Prompt(*(t.long() for t in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)))).count("int64") == 1


def test_numbers_that_are_nowhere_are_said_to_be():
    absent = prompts().to("meta")
    assert repr(absent) == "<Prompt of 5: L = 8, d = 3, N = 1; float32 on meta>"
    for text in (said(absent), str(absent)):
        assert text.count("cannot be read: ") == 4
        assert "Prompts" not in text


@pytest.mark.gpu
def test_prompts_on_a_gpu_are_read():
    assert said(prompts().to("cuda")).replace("cuda:0", "cpu") == said(prompts())


# --- Populations in a notebook ----------------------------------------------------------------------------------------


def test_runs_show_what_differs_what_came_out_and_what_they_share():
    text, frame = said(population()), population().to_frame()
    assert "population 4 runs task LinearRegression(dim=3, length=8" in text
    assert "alike n_layers 1, activation softmax, activation_scale 1.0, lr 0.001, optimizer adam" in text
    assert f"run {' '.join(frame.columns)} " in text
    for i, row in frame.iterrows():
        omega = ", ".join(f"{number:.3g}" for number in row.omega)
        assert f" {i} {row.n_heads} {row.seed} {row.step} {row.loss:.4g} {row.loss_error:.4g} {omega} " in text
        assert f"{row.loss:.4g}" in str(population()).splitlines()[-4 + i]
    assert "trouble" not in text


def test_a_thousand_folders_are_not_opened_for_twenty_rows(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(Run, "load", lambda path: opened.append(path) or run())
    runs = Runs([tmp_path / f"{i:04d}" for i in range(1_000)])
    assert repr(runs) == f"Runs(1,000 runs, in {tmp_path})"
    assert not opened
    for face in (said, str):
        assert f"1,000 runs, in {tmp_path}; the first 20 are shown, to_frame() has all" in face(runs)
        assert len(opened) == 20
        opened.clear()
    assert len(str(runs).splitlines()) == 5 + 20
    assert " 19 30 " in said(runs)
    assert " 20 30 " not in said(runs)


def test_a_run_that_cannot_be_opened_has_a_row_that_says_why(tmp_path):
    runs = Runs.load(population().save(tmp_path / "<b>[31m"))
    (tmp_path / "<b>[31m" / "0001" / "run.json").write_text('{"<i>\x1b')
    for text in (said(runs), str(runs)):
        assert "run.json is damaged" in text
        assert "<b>[31m" in text
    assert "<b>" not in shown(runs)
    assert "none: does not exist" in said(Runs([tmp_path / "none"]))


def test_no_runs_and_runs_of_little():
    assert said(Runs([])) == "population 0 runs"
    assert str(Runs([])) == "population: 0 runs"
    mixed = Runs([run(), untrained(n_outputs=1, n_heads=9)])
    assert "lr" in mixed.to_frame().columns
    for text in (said(mixed), str(mixed)):
        assert "… (9 in all)" in text
        assert "nan" in text  # no loss is known


def test_a_task_without_a_repr_is_shown():
    class Wild:
        dim, length, n_outputs = 3, 8, 1

        def __repr__(self):
            raise RuntimeError("no")

        def sample(self, batch, **_):
            return prompts(batch)

    config, weights = run().model_config, run().weights
    runs = Runs([Run(config, weights, Wild()), Run(config, weights, Wild())])
    assert runs.to_frame().columns[0] == "task"
    assert "a Wild" in said(runs)
    assert "a Wild" in str(runs)


def test_nothing_hostile_gets_through_a_population():
    of_run, _ = hostile(HOSTILE)
    for runs in (Runs([of_run, run()]), Runs([of_run])):
        text = shown(runs)
        assert "\x1b" not in text
        assert "49" not in text.replace("0.49", "")
        assert "&lt;script&gt;" in text
        assert all(line.isprintable() for line in str(runs).split("\n"))
        assert len(text) < 20_000


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_nothing_reaches_past_a_narrow_page(browser, background):
    of_run, of_analysis = hostile(HOSTILE)
    fine = (prompts(), run(), run().circuits(), analysis(), population())
    for thing in (*fine, of_run, of_analysis, *of_analysis, Runs([of_run, run()])):
        page = browser.new_page(viewport={"width": 700, "height": 400})
        page.set_content(f"<body style='background: {background}'>{thing._repr_html_()}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 700, repr(thing)
        page.close()


@pytest.mark.parametrize("loss", [[], [1.0], [1.0, np.nan]])
def test_no_curve_without_two_finite_points(loss):
    assert curve_svg(np.array(loss), "loss") == ""


# --- At a prompt ------------------------------------------------------------------------------------------------------


def test_a_line_at_the_prompt():
    assert repr(run()).startswith("<Run of one layer, 2 heads, d = 3, N = 1; step 30, seed 0; loss ")
    assert repr(run().circuits()) == "<Circuits of one layer, 2 heads, d = 3, N = 1>"
    assert repr(analysis()["dynamics"]) == "<Outcome of dynamics: 7 not applicable>"
    assert re.fullmatch(r"<Outcome of risk: 3 [a-z]+>|<Outcome of risk: \d .*, \d .*>", repr(analysis()["risk"]))
    assert repr(Outcome("p", "P?", "skipped", reason="needs the task")) == "<Outcome of p: needs the task>"


def test_printed_they_list_their_heads():
    lines = str(run()).splitlines()
    assert lines[-3].split() == ["layer", "head", "ω", "μ"]
    circuits = run().circuits()
    for head, line in enumerate(lines[-2:]):
        layer, index, omega, mu = map(float, line.split())
        assert (layer, index) == (0, head)
        assert omega == pytest.approx(circuits.omega[0, head], rel=1e-3)
        assert mu == pytest.approx(circuits.mu[0, head, 0], rel=1e-3)
    assert str(circuits).splitlines()[1:] == lines[-3:]
    deep = Circuits.from_weights(untrained(n_layers=2).weights, ModelConfig(3, n_layers=2))
    assert len(str(deep).splitlines()) == 2 + 2 * 2


def test_nothing_steers_the_terminal():
    of_run, of_analysis = hostile(HOSTILE)
    for text in (repr(of_run), str(of_run), repr(of_analysis), *map(repr, of_analysis)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert len(repr(of_run)) < 1_000
