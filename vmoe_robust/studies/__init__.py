"""One question a file: `run(job)` finds the answer, `render(results)` shows it.

To add one, write its file, name it in `STUDIES`, and give it a group of fields
of that name in `config/studies.py`.
"""

from vmoe_robust.studies import (
  certificates,
  corruptions,
  routing_change,
  theory,
)

# By the names that `config.study.name` may have.
STUDIES = {
  'certificates': certificates,
  'corruptions': corruptions,
  'routing_change': routing_change,
  'theory': theory,
}
