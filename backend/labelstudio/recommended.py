"""The recommended labeling config, and its parts for forms that lack them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from xml.sax.saxutils import escape

COLOURS = ("#FF3B30", "#34C759", "#AF52DE", "#FF9500", "#00A3BF", "#E6C200", "#E6007E", "#0A5BD3")
"""Of masks, one for each region control of the recommended form."""
HINTS = """\
  <View className="hints">
    <Style>
      .hints { height: 24px; overflow: hidden; }
      .hint { display: none; }
      .hint * { color: #8a5800; font-size: 13px !important; line-height: 24px !important; }
      .hint h4 { margin: 0 !important; }
      [data-color-scheme=dark] .hint * { color: #ffb84d; }
      .absent [data-testid=htx-textbox-content]::before { content: '\u2717 not in the image: '; }
      .absent [data-testid=htx-textbox-content] { color: #1f8a4c; display: flex; gap: .4em; }
      body:has([data-testid=bottombar-auto-annotation-toggle]:not(:checked)) .hint-off { display: block; }
      .lsf-requesting .hint-looking { display: block; }
      body:has(.lsf-auto-accept__info) .hint-waiting { display: block; }
      body:has(.lsf-tool_smart.lsf-tool_active) .hint-smart { display: block; }
      body:has([role=treeitem].lsf-tree-treenode-selected) .hint-selected { display: block; }
      body:has(.prompt [data-testid=htx-textbox-content]) .hint-marks { display: block; }
      body:has([role=treeitem]) .hint-masks { display: block; }
      .hint-start { display: block; }
      body:not(:has(.lsf-tool_smart)) .hint-by-click { display: none !important; }
      body:not(:has([aria-label=brush-tool], [aria-label=bitmask-tool])) .hint-by-brush {
        display: none !important; }
      body:not(:has([aria-label=bitmask-tool])) .hint-on-bitmask { display: none !important; }
    </Style>
    <View className="hint hint-off">
      <Header size="6" value="Auto-Annotation is off: phrases are not looked for"/>
    </View>
    <View className="hint hint-looking">
      <Header size="6" value="Looking..."/>
    </View>
    <View className="hint hint-waiting">
      <Header size="6" value="A mask waits for the tick or cross below; Submit and the next phrase drop it"/>
    </View>
    <View className="hint hint-smart hint-on-bitmask">
      <Header size="6"
              value="Click an object. A mask: click to choose it, then click to add, Alt+click to take away"/>
    </View>
    <View className="hint hint-smart">
      <Header size="6"
              value="Click an object. On a mask: Ctrl+click adds, Ctrl+Alt+click takes away (Mac: \u2318)"/>
    </View>
    <View className="hint hint-selected hint-by-brush">
      <Header size="6" value="B paints on this mask, E erases, Backspace deletes it, Escape leaves it"/>
    </View>
    <View className="hint hint-selected">
      <Header size="6" value="Drag its points or sides; Backspace deletes it, Escape leaves it"/>
    </View>
    <View className="hint hint-marks">
      <Header size="6" value="\u2205 nothing was found; a phrase without a mark was not looked for yet"/>
    </View>
    <View className="hint hint-masks hint-by-click">
      <Header size="6"
              value="A mask is wrong? Click it with the lowest tool, or choose it in the list"/>
    </View>
    <View className="hint hint-masks">
      <Header size="6" value="A mask is wrong? Choose it in the list"/>
    </View>
    <View className="hint hint-start">
      <Header size="6" value="Type what to look for and press Enter"/>
    </View>
  </View>
"""
"""What only the browser knows: the state of Label Studio's toggle and tools, masks that were not accepted,
which mask is chosen. One line: of those that apply, the first is seen. Those about a tool apply where the
form has it.
"""
LAYOUT = """\
    .sspsam .assist { display: grid; grid-template-columns: 2fr 1fr; grid-template-rows: auto 42px 24px 30px;
      column-gap: 8px; align-items: center; }
    .sspsam .assist .lsf-text-area, .sspsam .assist .ant-form-item { margin: 0 !important; }
    .sspsam .prompt, .sspsam .prompt .lsf-text-area, .sspsam .absent, .sspsam .absent .lsf-text-area,
    .sspsam .status, .sspsam .status .lsf-text-area { display: contents; }
    .sspsam .status form, .sspsam .assist [data-testid=textarea-submit-section] { display: none; }
    .sspsam .suggest { grid-area: 1 / 1 / 2 / 3; }
    .sspsam .suggest h4 { font-size: 14px; line-height: 20px; margin: 2px 0 !important; }
    .sspsam .prompt form { grid-area: 2 / 1; }
    .sspsam .absent form { grid-area: 2 / 2; }
    .sspsam .hints, .sspsam .status [data-testid=textarea-regions] { grid-area: 3 / 1 / 4 / 3; }
    .sspsam .prompt [data-testid=textarea-regions] { grid-area: 4 / 1; }
    .sspsam .absent [data-testid=textarea-regions] { grid-area: 4 / 2; }
    .sspsam .assist [data-testid=textarea-regions] { display: flex; gap: 6px; margin: 0 !important;
      min-width: 0; overflow: auto hidden; scrollbar-width: thin; }
    .sspsam .assist .lsf-row { flex: none; }
    .sspsam .assist .lsf-textarea__region { padding: 0 2px 0 0; margin: 0; height: 24px; display: flex;
      flex-direction: row; width: auto; align-items: center; border: 1px solid #9aa0b4; border-radius: 12px; }
    .sspsam .status .lsf-textarea__region { border: none; background: var(--color-neutral-background, #fff); }
    .sspsam .assist [data-testid=htx-textbox-content] { min-height: 0; padding: 0 8px; border: none;
      background: none; white-space: nowrap; }
    .sspsam .status [data-testid=htx-textbox-content] { padding: 0 4px; }
    .sspsam .assist .lsf-textarea__actions { position: static; opacity: 1; pointer-events: auto;
      transform: none; }
    .sspsam .assist .lsf-textarea__actions button { height: 20px; min-width: 20px; padding: 0; }
    .sspsam .assist:has(.status [data-testid=htx-textbox-content]) :is(.hint-start, .hint-masks, .hint-marks,
      .hint-selected) { display: none; }
    .sspsam .hint:is(.hint-off, .hint-looking, .hint-waiting, .hint-smart) { position: relative; z-index: 1;
      background: var(--color-neutral-background, #fff); }
    .sspsam .colours { display: flex; flex-wrap: wrap; column-gap: 4px; }
    .sspsam .colours .lsf-labels { margin: 2px 0; }
    .sspsam .colours .lsf-labels ~ .lsf-labels .lsf-label__text { display: none; }
    .sspsam [aria-label=brush-tool] ~ [aria-label=brush-tool] { display: none; }
"""
"""Prompt, hint and the phrases without masks take one line each, so that the picture keeps its place."""


def _brush(number: int, colour: str) -> str:
    name, role = ("mask", "") if number == 1 else (f"mask-{number}", ' sspsam="colour"')
    return f"""\
    <BrushLabels name="{name}" toName="image" smart="false" opacity="0.6"{role}>
      <Label value="object" background="{colour}"/>
    </BrushLabels>
"""


RECOMMENDED_CONFIG = f"""\
<View className="sspsam">
  <Style>
{LAYOUT}\
  </Style>
  <View className="assist">
{HINTS}\
  <View className="prompt">
    <TextArea name="prompt" toName="image" rows="1" showSubmitButton="true" editable="false"
              placeholder="Type a phrase (e.g. the red cup on the left) and press Enter"/>
  </View>
  <View className="absent">
    <TextArea name="absent" toName="image" rows="1" editable="false" smart="false"
              placeholder="Confirmed absent: phrases that fit nothing in the image"/>
  </View>
  <View className="status">
    <TextArea name="status" toName="image" maxSubmissions="1" editable="false" smart="false"/>
  </View>
  </View>
  <View className="colours">
{"".join(_brush(number, colour) for number, colour in enumerate(COLOURS, start=1))}\
  </View>
  <KeyPoint name="click" toName="image" smart="true" smartOnly="true" opacity="0.9" strokeWidth="4"/>
  <Rectangle name="box" toName="image" smart="true" smartOnly="true"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true" rotateControl="true" defaultZoom="fit"
         maxHeight="calc(100vh - 352px)"/>
  <TextArea name="phrase" toName="image" perRegion="true" displayMode="region-list" whenLabelValue="object"
            editable="true" required="true" requiredMessage="Every mask needs its phrase"
            maxSubmissions="1" rows="1" smart="false"/>
</View>
"""

ROLE_ATTRIBUTE = "sspsam"
"""Attribute by which the project lead gives a text area of another name its role."""
CONFIRMABLE = ("prompt", "phrase")
FOUND_BY_NAME = ("status", "absent")
"""Roles that no tag of another name can have."""
SNIPPETS: Mapping[str, str] = {
    "image": '<Image name="{image}" value="$image" zoom="true" zoomControl="true"/>',
    "prompt": '<TextArea name="prompt" toName="{image}" rows="1" showSubmitButton="true" editable="false"/>',
    "mask": '<BrushLabels name="mask" toName="{image}" smart="false"><Label value="object"/></BrushLabels>',
    "phrase": '<TextArea name="phrase" toName="{image}" perRegion="true" displayMode="region-list" '
    'whenLabelValue="{labels}" editable="true" required="true" maxSubmissions="1" rows="1" smart="false"/>',
    "status": '<TextArea name="status" toName="{image}" maxSubmissions="1" editable="false" smart="false"/>',
    "absent": '<View className="absent"><TextArea name="absent" toName="{image}" rows="1" editable="false" '
    'smart="false" placeholder="Confirmed absent: phrases that fit nothing in the image"/></View>',
    "hints": " ".join(HINTS.split()),
    "click": '<KeyPoint name="click" toName="{image}" smart="true" smartOnly="true"/>',
}
"""XML to add for a role: `image` is the image tag's name, `labels` the brush's labels, comma separated."""
_LABELS_ATTRIBUTE = 'whenLabelValue="{labels}" '
_QUOTE = {'"': "&quot;"}
WHY: Mapping[str, str] = {
    "image": "there is no <Image>: no image to segment",
    "prompt": 'there is no <TextArea name="prompt"> for the image of the masks: no place to type a phrase',
    "mask": "there is no <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <RectangleLabels>: no place for "
    "masks",
    "phrase": 'there is no <TextArea name="phrase" perRegion="true">: a mask keeps its phrase only as a '
    "hidden note",
    "status": 'there is no <TextArea name="status">: what went wrong is only written behind the phrase',
    "absent": 'there is no <TextArea name="absent">: no phrase can be confirmed to be absent from the image',
    "hints": 'there is no <View className="hints">: the form does not show that Auto-Annotation is off, or '
    "that a mask waits to be accepted",
    "click": "there is no smart <KeyPoint> or <KeyPointLabels>: masks are corrected with the brush, not by "
    "clicks",
}
"""What is missing without the role, and what follows from it."""


def snippet(role: str, image: str, labels: Sequence[str], taken: Collection[str]) -> str:
    """XML to add for a role.

    Args:
        role: Role of the tag.
        image: Name of the image tag.
        labels: Labels of the masks.
        taken: Names that other tags of the form have; Label Studio refuses a name that occurs twice.

    Returns:
        The tag, under another name if its own is taken; empty if the role depends on the name.
    """
    xml = SNIPPETS[role]
    if role in taken and f'name="{role}"' in xml:
        if role in FOUND_BY_NAME:
            return ""
        name = free_name(role, taken)
        confirmed = f' {ROLE_ATTRIBUTE}="{role}"' if role in CONFIRMABLE else ""
        xml = xml.replace(f'name="{role}"', f'name="{name}"{confirmed}')
    if not labels or any("," in label for label in labels):  # Label Studio splits the attribute at commas
        xml = xml.replace(_LABELS_ATTRIBUTE, "")
    return xml.replace("{image}", escape(image, _QUOTE)).replace("{labels}", escape(",".join(labels), _QUOTE))


def free_name(name: str, taken: Collection[str]) -> str:
    """A name for a new tag, with a number behind it if another tag has it."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)
