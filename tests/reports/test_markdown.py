from graphsurgery.reports.tables import markdown_table


def test_the_table(outcome):
    assert markdown_table(outcome).splitlines() == [
        "| network | test accuracy | validation accuracy | parameters | MACs | latency (ms) | epochs | note |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        "| parent 1 | 97.22 % | 96.94 % | 0.27 M | 40.55 M | 1.84 | 60 |  |",
        "| parent 2 | 96.67 % | 97.22 % | 0.27 M | 40.55 M | 1.84 | 60 |  |",
        "| ensemble | 97.78 % | 97.50 % | – | – | – | 120 | two networks run |",
        "| **fine-tuned** | **98.33 %** | **98.06 %** | **0.27 M** | **40.00 M** | **1.83** | **180** |  |",
    ]


def test_names_keep_to_their_cell(hostile):
    line = markdown_table(hostile).splitlines()[2]
    assert line.count("|") - line.count(r"\|") == 9
    assert r"\<script" in line
