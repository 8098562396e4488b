import itertools

from PIL import Image

from examples.miniature import report
from examples.miniature.report import results_table, save_drawn_digits, save_training_curves


def test_a_figure_that_a_stage_does_not_have_is_a_dash():
    lines = results_table({"LM": {"text loss": "3.21"}, "T2I": {"text loss": "3.10", "drawn": "98%"}}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["after", "text loss", "drawn"]
    assert cells[2:] == [["LM", "3.21", "-"], ["T2I", "3.10", "98%"]]
    assert len({len(line) for line in lines}) == 1


def test_every_prompt_is_in_the_picture(digits, tmp_path):
    images = digits[0].images
    save_drawn_digits({f"prompt {i}": images[3 * i : 3 * i + 3] for i in range(3)}, tmp_path / "drawn.png")
    assert Image.open(tmp_path / "drawn.png").size[0] > 500


def test_curves_of_stages_that_log_different_figures(tmp_path):
    lm = [{"step": 5, "text_loss": 3.0}, {"step": 10, "text_loss": 2.5, "eval": 1.0}]
    t2i = [{"step": 5, "text_loss": 2.4, "flow_loss": 1.1}]
    save_training_curves({"LM": lm, "T2I": t2i}, ["text_loss", "flow_loss"], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_names_of_stages_do_not_overlap(tmp_path, monkeypatch):
    lengths = {"LM": 60, "MMU, projectors": 60, "MMU": 500, "T2I": 2200, "tones, projectors": 10, "tones": 10}
    monkeypatch.setattr(report.plt, "close", lambda figure: None)
    histories = {stage: [{"step": steps, "text_loss": 3.0}] for stage, steps in lengths.items()}
    save_training_curves(histories, ["text_loss", "flow_loss"], tmp_path / "curves.png")
    figure = report.plt.gcf()
    figure.draw_without_rendering()  # saved in another resolution
    names = [text for legend in figure.legends for text in legend.get_texts()]
    names += [text for axis in figure.axes for text in axis.texts]
    assert sorted(text.get_text() for text in names) == sorted(lengths)
    boxes = [text.get_window_extent() for text in names]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    panels = [axis.get_tightbbox() for axis in figure.axes]
    assert not any(box.overlaps(panel) for box in boxes for panel in panels)
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
