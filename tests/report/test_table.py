from vmoe_robust.report.table import table

HEADERS = ['attack', 'eps', 'accuracy']
ROWS = [['none', '', '97.2%'], ['pgd', 0.03, '8.0%'], ['pgd', 0.1, '-']]


def test_numbers_stand_right_and_text_left():
  assert table(HEADERS, ROWS).splitlines() == [
    'attack   eps  accuracy',
    '------  ----  --------',
    'none             97.2%',
    'pgd     0.03      8.0%',
    'pgd      0.1         -',
  ]


def test_no_rows():
  assert table(['a', 'bc'], []) == 'a  bc\n-  --'
