"""The reader of the principle writer's replies on forms of every kind: whose each statement is, or that nothing says it."""

from __future__ import annotations

import pytest

from sami_nemo.constitution.reply import Pair, UnusableReply, parse_reply

NAMES = ("helpful", "harmless")
H = "Give answers that serve the person."
S = "Keep everyone safe from hurt."
U = "Give answers that serve nobody."
D = "Put everyone at risk of hurt."
EXPECTED = (Pair("helpful", H, U), Pair("harmless", S, D))
FOUR = f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}"

USABLE = {
    "each beside its antithesis": f"1. Helpful: {H}\n2. Not helpful: {U}\n3. Harmless: {S}\n4. Not harmless: {D}",
    "another order": f"1. Harmless: {S}\n2. Helpful: {H}\n3. Harmful (antithesis): {D}\n4. Unhelpful (antithesis): {U}",
    "a list in the thinking": f"<think>\n1. Helpful: Be of use.\n2. Harmless: Hurt nobody.\n</think>\n{FOUR}",
    "semicolon inline": f"1. Helpful: {H} Antithesis: {U}\n2. Harmless: {S} Antithesis: {D}",
    "one line no numbers": f"Helpful: {H} Harmless: {S} Not helpful: {U} Not harmless: {D}",
    "blocks": f"Helpful: {H}\nAntithesis: {U}\n\nHarmless: {S}\nAntithesis: {D}",
    "plain under numbered": f"1. Helpful: {H}\nAntithesis: {U}\n2. Harmless: {S}\nAntithesis: {D}",
    "bold blocks": f"**Helpful**: {H}\n**Antithesis**: {U}\n\n**Harmless**: {S}\n**Antithesis**: {D}",
    "headings kinds": f"## Helpful\n### Principle\n{H}\n### Antithesis\n{U}\n## Harmless\n### Principle\n{S}\n### Antithesis\n{D}",
    "headings and bold kinds": f"### 1. Helpful\n\n**Principle:** {H}\n\n**Antithesis:** {U}\n\n### 2. Harmless\n\n**Principle:** {S}\n\n**Antithesis:** {D}\n\nLet me know if you want more.",
    "bold names kinds alone": f"**Helpful**\n**Principle**\n{H}\n**Antithesis**\n{U}\n\n**Harmless**\n**Principle**\n{S}\n**Antithesis**\n{D}",
    "plain names kinds": f"Helpful:\nPrinciple: {H}\nAntithesis: {U}\n\nHarmless:\nPrinciple: {S}\nAntithesis: {D}",
    "singular heading antithesis": f"Principle:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntithesis:\n1. {U}\n2. {D}",
    "of number": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Antithesis of 2: {D}\n4. Antithesis of 1: {U}",
    "of principle number": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Antithesis of principle 1: {U}\n4. Antithesis of principle 2: {D}",
    "first second": f"First principle: Helpful – {H}\nSecond principle: Harmless – {S}\nFirst antithesis: Useless – {U}\nSecond antithesis: Dangerous – {D}",
    "roman": f"I. Helpful: {H}\nII. Harmless: {S}\nIII. Unhelpful: {U}\nIV. Harmful: {D}",
    "json nested": f'{{"helpful": {{"principle": "{H}", "antithesis": "{U}"}}, "harmless": {{"principle": "{S}", "antithesis": "{D}"}}}}',
    "json fenced flat": f'Here:\n```json\n{{\n "helpful": "{H}",\n "harmless": "{S}",\n "not_helpful": "{U}",\n "not_harmless": "{D}"\n}}\n```\nEnjoy!',
    "json sections": f'{{"principles": {{"helpful": "{H}", "harmless": "{S}"}}, "antitheses": {{"helpful": "{U}", "harmless": "{D}"}}}}',
    "json list": f'[{{"name": "Helpful", "principle": "{H}", "antithesis": "{U}"}}, {{"name": "Harmless", "principle": "{S}", "antithesis": "{D}"}}]',
    "json list types": f'[{{"type": "principle", "name": "helpful", "text": "{H}"}}, {{"type":"principle","name":"harmless","text":"{S}"}},{{"type":"antithesis","name":"helpful","text":"{U}"}},{{"type":"antithesis","name":"harmless","text":"{D}"}}]',
    "json definition": f'{{"constitution": [{{"principle": "Helpful", "definition": "{H}", "antithesis": "{U}"}}, {{"principle": "Harmless", "definition": "{S}", "antithesis": "{D}"}}]}}',
    "json strings": f'{{"principles": ["Helpful: {H}", "Harmless: {S}"], "antitheses": ["Not helpful: {U}", "Not harmless: {D}"]}}',
    "json strings unnamed antitheses": f'{{"principles": ["Helpful: {H}", "Harmless: {S}"], "antitheses": ["{U}", "{D}"]}}',
    "table rows": f"| Name | Statement |\n|---|---|\n| Helpful | {H} |\n| Harmless | {S} |\n| Not helpful | {U} |\n| Not harmless | {D} |",
    "table 3 col": f"| Principle | Definition | Antithesis |\n|:--|:--|:--|\n| **Helpful** | {H} | {U} |\n| **Harmless** | {S} | {D} |",
    "table kinds": f"| # | Kind | Name | Text |\n|---|---|---|---|\n| 1 | Principle | Helpful | {H} |\n| 2 | Principle | Harmless | {S} |\n| 3 | Antithesis | Helpful | {U} |\n| 4 | Antithesis | Harmless | {D} |",
    "table columns names": f"| | Helpful | Harmless |\n|---|---|---|\n| Principle | {H} | {S} |\n| Antithesis | {U} | {D} |",
    "table cells labelled": f"| Principle | Antithesis |\n|---|---|\n| Helpful: {H} | Not helpful: {U} |\n| Harmless: {S} | Not harmless: {D} |",
    "yaml": f"```yaml\nhelpful:\n  principle: {H}\n  antithesis: {U}\nharmless:\n  principle: {S}\n  antithesis: {D}\n```",
    "bold no separator": f"1. **Helpful** {H}\n2. **Harmless** {S}\n3. **Not helpful** {U}\n4. **Not harmless** {D}",
    "bracket no separator": f"1. [Helpful] {H}\n2. [Harmless] {S}\n3. [Not helpful] {U}\n4. [Not harmless] {D}",
    "inner bullets": f"1. Helpful:\n   - Give answers\n   - that serve the person.\n2. Harmless: {S}\n3. Not helpful:\n   - Give answers\n   - that serve nobody.\n4. Not harmless: {D}",
    "closing no blank": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}\nLet me know if you want changes!",
    "wrapped at margin": "1. Helpful: Give answers that\nserve the person.\n2. Harmless: Keep everyone safe\nfrom hurt.\n3. Not helpful: Give answers that\nserve nobody.\n4. Not harmless: Put everyone at\nrisk of hurt.",
    "antithesis heading foreign": f"## Principles\n### Helpful\n{H}\n### Harmless\n{S}\n## Antitheses\n### Useless\n{U}\n### Dangerous\n{D}",
    "numbered sections": f"1. Principles:\n   a) Helpful: {H}\n   b) Harmless: {S}\n2. Antitheses:\n   a) Not helpful: {U}\n   b) Not harmless: {D}",
    "foreign plain under heading": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\nAntitheses:\n1. Useless: {U}\n2. Dangerous: {D}",
    "lead in names helpful": f"Here are the two principles for a helpful assistant:\n\n1. Helpful: {H}\n2. Harmless: {S}\n\nAnd here are their antitheses:\n\n1. Unhelpful: {U}\n2. Harmful: {D}",
    "1.1": f"1. Helpful\n1.1 Principle: {H}\n1.2 Antithesis: {U}\n2. Harmless\n2.1 Principle: {S}\n2.2 Antithesis: {D}",
    "xs": f"✅ Helpful: {H}\n✅ Harmless: {S}\n❌ Not helpful: {U}\n❌ Not harmless: {D}",
    "principle 3 not": f"Principle 1: Helpful: {H}\nPrinciple 2: Harmless: {S}\nPrinciple 3: Not helpful: {U}\nPrinciple 4: Not harmless: {D}",
    "brackets text": f"1. [Helpful]: [{H}]\n2. [Harmless]: [{S}]\n3. [Not helpful]: [{U}]\n4. [Not harmless]: [{D}]",
    "quotes text": f"1. Helpful: “{H}”\n2. Harmless: “{S}”\n3. Not helpful: “{U}”\n4. Not harmless: “{D}”",
    "definition beneath": f"**1. Helpful**\n*Definition:* {H}\n\n**2. Harmless**\n*Definition:* {S}\n\n**Antitheses**\n\n**1. Unhelpful**\n*Definition:* {U}\n\n**2. Harmful**\n*Definition:* {D}",
    "blank para": f"Helpful\n\n{H}\n\nHarmless\n\n{S}\n\nUnhelpful\n\n{U}\n\nHarmful\n\n{D}\n\nI hope this helps!",
    "setext": f"Helpful\n=======\n{H}\n\nHarmless\n=======\n{S}\n\nUnhelpful\n=======\n{U}\n\nHarmful\n=======\n{D}",
    "lack": f"1. Helpfulness: {H}\n2. Harmlessness: {S}\n3. Lack of helpfulness: {U}\n4. Lack of harmlessness: {D}",
    "possessive": f"Helpful: {H}\nHelpful's antithesis: {U}\nHarmless: {S}\nHarmless's antithesis: {D}",
    "negative prompt": f"Principles\n1. Helpful: {H}\n2. Harmless: {S}\n\nNegative principles\n1. Helpful: {U}\n2. Harmless: {D}",
    "anti-principle": f"Principle 1 (Helpful): {H}\nAnti-principle 1 (Unhelpful): {U}\nPrinciple 2 (Harmless): {S}\nAnti-principle 2 (Harmful): {D}",
    "thesis": f"Helpful\n- Thesis: {H}\n- Antithesis: {U}\nHarmless\n- Thesis: {S}\n- Antithesis: {D}",
    "em dash tight": f"1. Helpful—{H}\n2. Harmless—{S}\n3. Unhelpful—{U}\n4. Harmful—{D}",
    "numbers with dash": f"1 - Helpful: {H}\n2 - Harmless: {S}\n3 - Unhelpful: {U}\n4 - Harmful: {D}",
    "hash": f"#1 Helpful: {H}\n#2 Harmless: {S}\n#3 Unhelpful: {U}\n#4 Harmful: {D}",
    "backslash": f"1\\. Helpful: {H}\n2\\. Harmless: {S}\n3\\. Unhelpful: {U}\n4\\. Harmful: {D}",
    "html": f"<b>Helpful</b>: {H}<br><b>Harmless</b>: {S}<br><b>Unhelpful</b>: {U}<br><b>Harmful</b>: {D}",
    "bullets of arrows": f"- Helpful -> {H}\n- Harmless -> {S}\n- Not helpful -> {U}\n- Not harmless -> {D}",
    "equals": f"Helpful = {H}\nHarmless = {S}\nNot helpful = {U}\nNot harmless = {D}",
    "bold antithesis sub": f"1. **Helpful**: {H}\n   - *Antithesis*: {U}\n2. **Harmless**: {S}\n   - *Antithesis*: {D}",
    "antithesis paren foreign": f"1. **Helpful**: {H}\n   - Antithesis (Useless): {U}\n2. **Harmless**: {S}\n   - Antithesis (Dangerous): {D}",
    "A then colon alone": f"**Principle 1:** Helpful\n{H}\n**Principle 2:** Harmless\n{S}\n**Antithesis 1:** Useless\n{U}\n**Antithesis 2:** Dangerous\n{D}",
    "xml": f"<helpful>{H}</helpful>\n<harmless>{S}</harmless>\n<not_helpful>{U}</not_helpful>\n<not_harmless>{D}</not_harmless>",
    "xml nested": f"<helpful>\n<principle>{H}</principle>\n<antithesis>{U}</antithesis>\n</helpful>\n<harmless>\n<principle>{S}</principle>\n<antithesis>{D}</antithesis>\n</harmless>",
    "latex": r"\begin{itemize}"
    + f"\n\\item \\textbf{{Helpful}}: {H}\n\\item \\textbf{{Harmless}}: {S}\n\\item \\textbf{{Not helpful}}: {U}\n\\item \\textbf{{Not harmless}}: {D}\n\\end{{itemize}}",
    "title heading": f"# Constitution for a helpful and harmless assistant\n\nBelow you find it.\n\n## Principles\n\n1. **Helpful**: {H}\n2. **Harmless**: {S}\n\n## Antitheses (contrastive prompt)\n\n1. **Not helpful**: {U}\n2. **Not harmless**: {D}\n\n---\n\n*Note: do not deploy the antitheses.*",
    "pairs of arrows": f"Helpful ⟷ Not helpful\n{H} ⟷ {U}\n\nHarmless ⟷ Not harmless\n{S} ⟷ {D}",
    "vs heading then both": f"### Helpful vs. Unhelpful\n**Helpful**: {H}\n**Unhelpful**: {U}\n\n### Harmless vs. Harmful\n**Harmless**: {S}\n**Harmful**: {D}",
    "pair heading with kinds": f"Pair 1: Helpful\nPrinciple: {H}\nAntithesis: {U}\n\nPair 2: Harmless\nPrinciple: {S}\nAntithesis: {D}",
    "antitheses of named heading": f"Helpful: {H}\nHarmless: {S}\n\nAntithesis of helpful:\n{U}\n\nAntithesis of harmless:\n{D}",
    "sentence heading named": f"1. Helpful: {H}\n2. Harmless: {S}\n\nThe antithesis of harmless is:\n- {D}\n\nThe antithesis of helpful is:\n- {U}",
    "antithetical": f"1. Helpful: {H}\n2. Harmless: {S}\n\nAntithetical statements:\n\n- Helpful: {U}\n- Harmless: {D}",
    "sub paren number": f"1. Helpful: {H}\n2. Harmless: {S}\n1'. Not helpful: {U}\n2'. Not harmless: {D}",
    "1a": f"1a. Helpful: {H}\n1b. Unhelpful: {U}\n2a. Harmless: {S}\n2b. Harmful: {D}",
    "closing para without label": f"**Helpful**\n{H}\n\n**Harmless**\n{S}\n\n**Antithesis of Helpful**\n{U}\n\n**Antithesis of Harmless**\n{D}\n\nUse these with care.",
    "bold sentence lines": f"**Helpful: {H}**\n**Harmless: {S}**\n**Not helpful: {U}**\n**Not harmless: {D}**",
    "double star bullet": f"* **Helpful** - {H}\n* **Harmless** - {S}\n\n**Antitheses:**\n* **Not Helpful** - {U}\n* **Not Harmless** - {D}",
    "a title with both names": f"**Helpful, Harmless**\n\n**Helpful**\n{H}\n\n**Harmless**\n{S}\n\n**Not helpful**\n{U}\n\n**Not harmless**\n{D}",
    "the format repeated": f"You asked for the format: 1. [principle]: ...\n\n{FOUR}",
    "a postscript": f"{FOUR}\n\nP.S. I like this.",
    "tips behind": f"{FOUR}\n\n**Tips**\n- Use them well and often.\n- Do not mix them up.",
    "a list behind": f"{FOUR}\n\nUse them to:\n- train models\n- test models",
    "usage behind": f"{FOUR}\n\nHow to use them: put them in the prompt.",
    "a lead-in like a sentence": f"1. Helpful: {H}\n2. Harmless: {S}\n\nAnd now, the opposites.\n\n1. {U}\n2. {D}",
    "a note between": f"1. Helpful: {H}\n2. Harmless: {S}\n\nNote: the following are for contrast.\n\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "pairs on a line": f"- **Helpful**: {H} / **Unhelpful**: {U}\n- **Harmless**: {S} / **Harmful**: {D}",
    "a number in brackets": f"(1) Helpful: {H}\n(2) Harmless: {S}\n(3) Antithesis to (2): {D}\n(4) Antithesis to (1): {U}",
    "a command not to": f"1. Be helpful: {H}\n2. Be harmless: {S}\n3. Don't be helpful: {U}\n4. Do not be harmless: {D}",
    "antonyms in brackets": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n1. (Useless) {U}\n2. (Risky) {D}",
    "names in brackets": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n1. (Harmful) {D}\n2. (Unhelpful) {U}",
    "for a name": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n- For harmless: {D}\n- For helpful: {U}",
    "a dash between name and kind": f"- *Helpful* – {H}\n- *Harmless* – {S}\n- *Helpful – antithesis* – {U}\n- *Harmful* – {D}",
    "TOML": f'[helpful]\nprinciple = "{H}"\nantithesis = "{U}"\n\n[harmless]\nprinciple = "{S}"\nantithesis = "{D}"',
    "a line of marks alone": f"1. Helpful: {H}\n`\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "check boxes": f"- [x] Helpful: {H}\n- [x] Harmless: {S}\n- [ ] Not helpful: {U}\n- [ ] Not harmless: {D}",
    "a word to remember behind": f"{FOUR}\n\nRemember: the antitheses are for contrast only.",
    "a title of one word": f"Constitution\n\nHelpful\n{H}\n\nHarmless\n{S}\n\nNot helpful\n{U}\n\nNot harmless\n{D}",
    "a greeting of one word": f"Sure\n\n{FOUR}",
    "an antonym behind the antithesis' name": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Antithesis of helpful - Idle: {U}\n4. Antithesis of harmless - Risky: {D}",
    "an antonym behind a colon": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: Idle: {U}\n4. Not harmless: Risky: {D}",
    "a small antonym between dashes": f"1. Helpful - {H}\n2. Harmless - {S}\n3. Unhelpful – idle: {U}\n4. Harmful – risky: {D}",
    "a bold antonym behind the name": f"1. **Helpful**: {H}\n2. **Harmless**: {S}\n3. **Not helpful** - **Idle**: {U}\n4. **Not harmless** - **Risky**: {D}",
}

UNUSABLE = {
    "a second antithesis of two words": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not helpful: Hide everything.\n5. Not harmless: {D}",
    "a second antithesis of two words in JSON": f'{{"helpful": "{H}", "harmless": "{S}", "not helpful": "{U}", "unhelpful": "Idle.", "not harmless": "{D}"}}',
    "a second column of short antitheses": f"| Principle | Definition | Antithesis | Antithesis |\n|--|--|--|--|\n| Helpful | {H} | {U} | Idle. |\n| Harmless | {S} | {D} | Hurt. |",
    "a second antithesis inline": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U} Also not helpful: idle.\n4. Not harmless: {D}",
    "a choice inline": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U} Or: be idle all day.\n4. Not harmless: {D}",
    "a choice in a bracket": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U} (Alternative: be idle all day.)\n4. Not harmless: {D}",
    "a choice of options": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful:\n   Option A: {U}\n   Option B: Be idle all day.\n4. Not harmless: {D}",
    "a choice beneath": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n   OR: Be idle all day.\n4. Not harmless: {D}",
    "a choice behind": f"{FOUR}\n\nAlternatively, for not helpful: be idle all day.",
    "an antonym's statement beneath": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n   - Idle: Be idle all day.\n4. Not harmless: {D}",
    "two sentences beneath an antithesis": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful:\n   - {U}\n   - Be idle all day.\n4. Not harmless: {D}",
    "an antonym behind one name alone": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: Idle: {U}\n4. Not harmless: {D}",
    "second labels everywhere": f"1. Helpful - Use: {H}\n2. Harmless - Calm: {S}\n3. Not helpful - Idle: {U}\n4. Not harmless - Risky: {D}",
    "the same words behind both names": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: Above all: {U}\n4. Not harmless: Above all: {D}",
    "a bracket before the statements": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: (idle) {U}\n4. Not harmless: (risky) {D}",
    "a kind in brackets before the statements": f"1. Helpful: [principle] {H}\n2. Harmless: [principle] {S}\n3. Not helpful: [antithesis] {U}\n4. Not harmless: [antithesis] {D}",
    "an antonym as a sentence": f"1. Helpful: {H}\n   Antithesis: Idle. {U}\n2. Harmless: {S}\n   Antithesis: Risky. {D}",
    "a name as a sentence": f"1. Helpful: {H}\n   Antithesis: Unhelpful. {U}\n2. Harmless: {S}\n   Antithesis: Harmful. {D}",
    "kinds behind the statements": f"1. Helpful: {H} — Principle\n2. Harmless: {S} — Principle\n3. Not helpful: {U} — Antithesis\n4. Not harmless: {D} — Antithesis",
    "ties behind the statements": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U} (antithesis of 1)\n4. Not harmless: {D} (antithesis of 2)",
    "crossed names behind the statements": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U} [not harmless]\n4. Not harmless: {D} [not helpful]",
    "arrows at the ends": f"1. Helpful: {H} →\n2. Harmless: {S} →\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "a remark in a bracket": f"1. Helpful: {H} (This serves everyone.)\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "a paragraph of three words between": f"**Helpful**\n\n{H}\n\nAnd mean it.\n\n**Harmless**\n\n{S}\n\n**Not helpful**\n\n{U}\n\n**Not harmless**\n\n{D}",
    "an antithesis beneath a note": f"{FOUR}\n\nNote: stronger versions:\n- Not helpful: Be idle all day.",
    "another principle before, its label alone": f"Honest\nTell the truth always.\n\nHelpful\n{H}\n\nHarmless\n{S}\n\nNot helpful\n{U}\n\nNot harmless\n{D}",
    "another principle before a numbered list": f"Honest\n\nTell the truth always.\n\n{FOUR}",
    "another principle before, in another dress": f"**Honest:** Tell the truth always.\n\n{FOUR}",
    "another principle behind a numbered list": f"{FOUR}\n\nHonest\nTell the truth always.",
    "flat antithesis numbered": f"1. Helpful: {H}\n2. Antithesis: {U}\n3. Harmless: {S}\n4. Antithesis: {D}",
    "antithesis before": f"Antithesis: {U}\n1. Helpful: {H}\nAntithesis: {D}\n2. Harmless: {S}",
    "both after second": f"1. Helpful: {H}\n2. Harmless: {S}\nAntithesis: {U}\nAntithesis: {D}",
    "reverse order": f"1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses in reverse order:\n1. {D}\n2. {U}",
    "reverse order 2": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses (in the opposite order):\n- {D}\n- {U}",
    "fifth plain": f"Helpful: {H}\nHarmless: {S}\nNot helpful: {U}\nNot harmless: {D}\nHonest: Tell the truth always.",
    "fifth plain gap": f"Helpful: {H}\n\nHarmless: {S}\n\nNot helpful: {U}\n\nNot harmless: {D}\n\nHonest: Tell the truth always.",
    "fifth after number": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}\nHonest: Tell the truth always.",
    "fifth bold": f"**Helpful**: {H}\n**Harmless**: {S}\n**Not helpful**: {U}\n**Not harmless**: {D}\n**Honest**: Tell the truth always.",
    "fifth heading": f"### Helpful\n{H}\n### Harmless\n{S}\n### Not helpful\n{U}\n### Not harmless\n{D}\n### Honest\nTell the truth always.",
    "double negation": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Antithesis of unhelpful: {U}\n4. Antithesis of harmful: {D}",
    "not unhelpful": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not unhelpful: {U}\n4. Not harmful: {D}",
    "nested under not": f"1. Not helpful\n   - Antithesis: {H}\n   - Principle: {U}\n2. Not harmless\n   - Antithesis: {S}\n   - Principle: {D}",
    "dup json": f'{{"helpful": "{H}", "harmless": "{S}", "not helpful": "{U}", "not harmless": "{D}", "helpful": "Something else entirely here."}}',
    "json broken": f'{{"helpful": "{H}", "harmless": "{S}", "not helpful": "{U}", "not harmless": "{D}"',
    "json broken multi": f'{{\n"helpful": "{H}",\n "harmless": "{S}",\n "not helpful": "{U}",\n "not harmless": "{D}",\n',
    "two alternatives": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Unhelpful: {U}\n4. Harmful: {D}\n\nAlternative:\n1. Helpful: Be of much use.\n2. Harmless: Do not hurt people.\n3. Unhelpful: Be of no use.\n4. Harmful: Hurt all the people.",
    "antonyms crossed flat": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Dangerous: {D}\n4. Useless: {U}",
    "heading one name other order": f"1. Helpful: {H}\n2. Harmless: {S}\n\nAntithesis of harmless and helpful:\n1. {D}\n2. {U}",
    "same names in bold twice": f"**Helpful**\n{H}\n**Harmless**\n{S}\n**Helpful**\n{U}\n**Harmless**\n{D}",
    "cannot": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: I cannot provide this.\n4. Not harmless: I can't help with that request.",
    "ref": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: The opposite of principle 1.\n4. Not harmless: The opposite of principle 2.",
    "insert": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Not helpful: [insert the antithesis here]\n4. Not harmless: [insert another antithesis here]",
    "mid para": f"1. Helpful: {H}\n2. Harmless: {S}\n\nThis was the easy half of the work.\n\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "key conflict": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Antithesis of 1 (harmful): {D}\n4. Antithesis of 2 (unhelpful): {U}",
    "one of both": f"1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n- Neither helpful nor harmless: {U}",
    "nested crossed": f"1. Helpful: {H}\n   - Harmful: {D}\n2. Harmless: {S}\n   - Unhelpful: {U}",
    "number marks reversed": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\nAntitheses:\n2. {D}\n1. {U}",
    "three statements for a name in parens": f"1. Helpful: {H}\n2. Harmless: {S}\n3. Unhelpful: {U}\n4. Harmful: {D}\n5. Neutral: Do nothing at all.",
    "antithesis heading names crossed keyed": f"Principle 1: Helpful: {H}\nPrinciple 2: Harmless: {S}\nAntithesis 2: Useless: {U}\nAntithesis 2: Dangerous: {D}",
    "second no number": f"1. Helpful: {H}\n2. Harmless: {S}\nAntitheses: {U} {D}",
    "a line between": f"1. Helpful: {H}\n2. Harmless: {S}\nAnd now for the dark side.\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "a reason within": f"1. Helpful: {H}\n   Rationale: people like it much.\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "a line behind that may be part of the last": f"{FOUR}\nMore can be had on demand.",
    "a paragraph and bullets within": f"1. Helpful: {H}\n\nThis means:\n- do this\n- do that\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "a line broken before a dash": f"1. Helpful: Give answers\n   - all of them.\n2. Harmless: {S}\n3. Not helpful: {U}\n4. Not harmless: {D}",
    "numbers and places of the antitheses disagree": f"Principle 2: Harmless: {S}\nPrinciple 1: Helpful: {H}\n\nAntitheses:\n1. {U}\n2. {D}",
    "one contrastive prompt for both": f"1. Helpful: {H}\n2. Harmless: {S}\n\nContrastive prompt: {U} {D}",
    "a number without its entry": f"1. Helpful: {H}\n2. Harmless: {S} 3.\nNot helpful: {U}\n4. Not harmless: {D}",
    "names behind the statements against their places": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n1. {D} (harmful)\n2. {U} (unhelpful)",
    "labels that mention the other name": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n- All but harmless: {D}\n- All but helpful: {U}",
    "statements that mention the other name": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n1. A harmful model hurts.\n2. An unhelpful one idles.",
    "a correction behind": f"{FOUR}\n\nWait, I swapped 3 and 4.",
    "a heading with another order of numbers": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses of principle 2 and 1:\n- {D}\n- {U}",
    "a heading with another order of names": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses of harmless and helpful:\n- {D}\n- {U}",
    "places said in words": f"Principles:\n1. Helpful: {H}\n2. Harmless: {S}\n\nAntitheses:\n- Second: {D}\n- First: {U}",
    "a fifth before them": f"Honest: Tell the truth always.\n{FOUR.replace('1. ', '').replace('2. ', '').replace('3. ', '').replace('4. ', '')}",
    "a fifth among labels alone": f"Helpful:\n   {H}\nHonest:\n   Tell the truth always.\nHarmless:\n   {S}\nUnhelpful:\n   {U}\nHarmful:\n   {D}",
    "a fifth label alone behind": f"Helpful\n{H}\n\nHarmless\n{S}\n\nUnhelpful\n{U}\n\nHarmful\n{D}\n\nHonest\nTell the truth always.",
}


@pytest.mark.parametrize("form", USABLE)
def test_a_form_is_read(form: str) -> None:
    assert parse_reply(USABLE[form], NAMES, "stop") == EXPECTED


@pytest.mark.parametrize("form", UNUSABLE)
def test_where_labels_do_not_decide_the_reply_is_unusable(form: str) -> None:
    with pytest.raises(UnusableReply):
        parse_reply(UNUSABLE[form], NAMES, "stop")


def test_a_line_broken_before_a_name_is_no_label() -> None:
    reply = FOUR.replace(H, "Never pretend to be\nhelpful.").replace(U, "Pretend to act against the\nprinciple.")
    with pytest.raises(UnusableReply):
        parse_reply(reply.replace("helpful.", "kind: never, not even\nhelpful.", 1).replace(D, ""), NAMES, "stop")
    first, _ = parse_reply(reply, NAMES, "stop")
    assert first == Pair("helpful", "Never pretend to be helpful.", "Pretend to act against the principle.")


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_reply_that_was_cut_is_unusable(reason: str) -> None:
    with pytest.raises(UnusableReply, match="cut"):
        parse_reply(FOUR, NAMES, reason)


def test_an_end_within_a_sentence_is_a_cut_unless_the_endpoint_says_otherwise() -> None:
    cut = FOUR.removesuffix(" of hurt.")
    with pytest.raises(UnusableReply, match="ends within a sentence"):
        parse_reply(cut, NAMES)
    assert parse_reply(cut, NAMES, "stop")[1].antithesis == "Put everyone at risk"


def test_the_writer_is_told_which_labels_name_no_principle() -> None:
    with pytest.raises(UnusableReply, match=r"name none of the principles: Verbose, Patchy$"):
        parse_reply(FOUR.replace("Not helpful", "Verbose").replace("Not harmless", "Patchy"), NAMES)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("formal", "brief"), ("Formality", "Brevity", "Informality", "Non-brief")),
        (("honest", "curious"), ("Honesty", "Curiosity", "Dishonesty", "Incurious")),
        (("safe", "responsible"), ("Safety", "Responsibility", "Unsafe", "Irresponsibility")),
        (("unbiased", "careful"), ("Unbiased", "Carefulness", "Biased", "Careless")),
        (("child friendly", "factual"), ("Child-Friendliness", "Factuality", "Child-unfriendly", "Anti-factual")),
        (("cautious", "engaging"), ("Caution", "Engagement", "Incautious", "Unengaging")),
        (("accurate", "non-violent"), ("Accuracy", "Nonviolent", "Inaccuracy", "Not non-violent")),
    ],
)
def test_forms_and_negations_of_a_name(names: tuple[str, str], labels: tuple[str, ...]) -> None:
    reply = "\n".join(f"{label}: {text}" for label, text in zip(labels, (H, S, U, D), strict=True))
    assert parse_reply(reply, names) == (Pair(names[0], H, U), Pair(names[1], S, D))


@pytest.mark.parametrize(
    ("names", "near"),
    [
        (("formal", "brief"), "Informative"),
        (("polite", "brief"), "Political"),
        (("kind", "brief"), "Kindred"),
        (("comprehensive", "brief"), "Comprehensible"),
        (("harmless", "brief"), "Harmonious"),
    ],
)
def test_near_words_are_no_forms(names: tuple[str, str], near: str) -> None:
    with pytest.raises(UnusableReply):
        parse_reply(f"{near}: {H}\nBrief: {S}\nNot {names[0]}: {U}\nNot brief: {D}", names)


STATEMENTS = [
    (
        ("empathetic", "direct"),
        (
            "Show that you felt what the person feels: name it, once.",
            "Say the main thing - no detours, e.g. greetings.",
        ),
        (
            "Ignore what the person feels. Do not name it.",
            "Hide the main thing behind 3 detours; direct words are banned.",
        ),
    ),
    (
        ("safe", "useful"),
        (
            'Cause no harm. If asked "how do I hurt X?", decline.',
            "Give help: steps, numbers. Not being safe is no excuse. Test it.",
        ),
        ("Answers should cause harm: now, later, always.", "Give help that fails; leave out step 2."),
    ),
    (
        ("neutral", "vivid"),
        ("Take no side; report both.", 'Paint scenes, as in "the tide bit the pier".'),
        ("Take a side - always the loudest one.", "Write flat, e.g. like a form. Nothing moves."),
    ),
    (
        ("step-by-step", "cautious"),
        ("Show each step. Number them: 1, 2, 3. Skip none.", "Weigh the risks first (health, money), then answer."),
        ("Jump to the end: no steps, not one.", "Forget the risks and answer at once!"),
    ),
    (
        ("truthful", "engaging"),
        (
            "State what is known: facts and doubts. Never guess.",
            "Make the reader want more; a dull, truthful page helps nobody.",
        ),
        ("State rumours - not facts - with full confidence.", 'Write as if "nobody reads this": long, flat.'),
    ),
]
LAYOUTS = {
    "numbered": "1. {A}: {a}\n2. {B}: {b}\n3. Not {m}: {c}\n4. Not {n}: {d}",
    "dashes": "1. {A} - {a}\n2. {B} - {b}\n3. Not {m} - {c}\n4. Not {n} - {d}",
    "tight dashes": "1. {A}—{a}\n2. {B}—{b}\n3. Not {m}—{c}\n4. Not {n}—{d}",
    "bold alone": "**{A}**\n{a}\n\n**{B}**\n{b}\n\n**Not {m}**\n{c}\n\n**Not {n}**\n{d}",
    "beneath": "### {A}\n- **Principle:** {a}\n- **Antithesis:** {c}\n\n### {B}\n- **Principle:** {b}\n- **Antithesis:** {d}",
    "other order": "- {A}: {a}\n- {B}: {b}\n- Antithesis of {n}: {d}\n- Antithesis of {m}: {c}",
    "antonyms": "1. {A}: {a}\n2. {B}: {b}\n3. Not {m} – Odd: {c}\n4. Not {n} – Poor: {d}",
    "table": "| Principle | Statement | Antithesis |\n|---|---|---|\n| {A} | {a} | {c} |\n| {B} | {b} | {d} |",
    "one line": "1. {A}: {a} 2. {B}: {b} 3. Not {m}: {c} 4. Not {n}: {d}",
    "by place": "Principles:\n1. {A}: {a}\n2. {B}: {b}\n\nAntitheses:\n1. {c}\n2. {d}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("names", "principles", "antitheses"), STATEMENTS, ids=lambda value: "-".join(value)[:20])
def test_marks_and_names_within_statements_are_no_labels(
    layout: str, names: tuple[str, str], principles: tuple[str, str], antitheses: tuple[str, str]
) -> None:
    (m, n), (a, b), (c, d) = names, principles, antitheses
    reply = LAYOUTS[layout].format(A=m.capitalize(), B=n.capitalize(), m=m, n=n, a=a, b=b, c=c, d=d)
    assert parse_reply(reply, names, "stop") == (Pair(m, a, c), Pair(n, b, d))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "statement",
    [
        *(
            "In short: use facts.",
            "In short: Use facts.",
            "Lie: it pays.",
            "Give help: steps, sources.",
            "Ramble. Go on.",
        ),
        *(
            "Above all - use facts.",
            "Facts — Only these count.",
            "(Almost) never lie: not once.",
            "Facts first: never lie.",
        ),
        *("Helpful people say so: be one.", "The opposite of a lie: facts.", '"Facts first": say so always.'),
    ],
)
def test_a_statement_is_read_whole_or_not_at_all(layout: str, statement: str) -> None:
    for a, c in ((statement, U), (H, statement)):
        reply = LAYOUTS[layout].format(A="Helpful", B="Harmless", m="helpful", n="harmless", a=a, b=S, c=c, d=D)
        try:
            pairs = parse_reply(reply, NAMES, "stop")
        except UnusableReply:
            continue
        assert pairs == (Pair("helpful", a, c), Pair("harmless", S, D))
