"""How to read the figure of each study; docs/studies.md says more."""

USUAL = 'Points are values; bands and bars are their 95% intervals.'

READING = {
  'batch_dependence': 'A flip says that a prediction is not the image alone: '
  'then accuracy by capacity depends on how a test set is ordered.',
  'certificates': 'Share of images whose class provably holds within the '
  'radius, for the smoothed model, not for the model itself.',
  'corruptions': 'Accuracy under common corruptions by severity; severity 0 is '
  'clean. Bands are 95% intervals.',
  'frozen_routing': 'Solid lines are the model as it is, dashed ones have '
  'clean routing. Paired differences whose interval holds 0 show nothing.',
  'jacobian': 'A point is the norm of a term over that of the Jacobian, mean '
  'over images. Shares need not add up to 1, for terms are vectors.',
  'losses': 'Accuracy beside the share of choices that moved. A curve that is '
  'high in both is a change of routing that does not matter to the class.',
  'norm_union': 'The union is at most the lowest norm; the distance between '
  'the two is what norms break separately.',
  'routing_attacks': 'The dashed line is the first attack; a solid line below '
  'it would be an attack that it lacks.',
  'routing_change': '1 - IoU of the experts of a token, mean over tokens and '
  'then images. It does not say whether the change did any harm.',
  'substitution': 'Accuracy against the rank of the expert that runs; a flat '
  'line is a block whose experts can stand for each other. Compare conditions '
  'by against_unchanged, which counts the same images in pairs.',
  'theory': 'What the theory predicts beside what was found; see '
  'docs/theory.md. No checkpoint is involved.',
  'transfer': 'A row is where x_adv come from, a column is who sees them; the '
  "diagonal is each model's own robust accuracy.",
}
