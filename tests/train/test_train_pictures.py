"""train/pictures.py: the report's pictures come out as the bytes that went in."""

from matplotlib.figure import Figure

from train import pictures, report


def test_pictures_come_out_of_a_report(tmp_path):
    figures = []
    for height in (1, 2):
        figure = Figure(figsize=(1, height))
        figure.subplots().plot([0, height])
        figures.append(report._picture(figure, f"Number {height}: a line"))
    (tmp_path / report.FILE).write_text("<html>" + "".join(figures) + "</html>")
    files = pictures.save(tmp_path, tmp_path / "out")
    assert [file.name for file in files] == ["number_1.png", "number_2.png"]
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(b"\x89PNG") and second.startswith(b"\x89PNG") and first != second


def test_a_run_without_a_report_is_said(tmp_path, capsys):
    assert pictures.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "expected report.html" in capsys.readouterr().err
