"""The recommended labeling config, and its parts for forms that lack them."""

from __future__ import annotations

from collections.abc import Mapping

HINTS = """\
  <View className="hints">
    <Style>
      .hint { display: none; }
      .hint * { color: #b36b00; margin: 0; }
      .absent [data-testid=htx-textbox-content]::before { content: '\u2717 not in the image: '; }
      .absent [data-testid=htx-textbox-content] { color: #1f8a4c; display: flex; gap: .4em; }
      body:has([data-testid=bottombar-auto-annotation-toggle]:not(:checked)) .hint-off { display: block; }
      body:has(.lsf-auto-accept__info) .hint-waiting { display: block; }
      body:has(.prompt [data-testid=htx-textbox-content]) .hint-marks { display: block; }
    </Style>
    <View className="hint hint-off">
      <Header size="6" value="Auto-Annotation is off: phrases are not looked for"/>
    </View>
    <View className="hint hint-marks">
      <Header size="6" value="Below: \u2205 nothing was found; without a mark, not looked for yet"/>
    </View>
    <View className="hint hint-waiting">
      <Header size="6" value="A mask waits for the tick or cross below; Submit and the next phrase drop it"/>
    </View>
  </View>
"""
"""What only the browser knows: the state of Label Studio's toggle, and masks that were not accepted."""
RECOMMENDED_CONFIG = f"""\
<View>
  <Style>
    .lsf-requesting .prompt::before {{ content: 'Looking...'; color: #b36b00; font-weight: bold; }}
    .status form {{ display: none; }}
  </Style>
{HINTS}\
  <View className="prompt">
    <TextArea name="prompt" toName="image" rows="1" showSubmitButton="true" editable="false"
              placeholder="Type a phrase (e.g. the red cup on the left) and press Enter"/>
  </View>
  <View className="status">
    <TextArea name="status" toName="image" maxSubmissions="1" editable="false" smart="false"/>
  </View>
  <View className="absent">
    <TextArea name="absent" toName="image" rows="1" editable="false" smart="false"
              placeholder="Confirmed absent: phrases that fit nothing in the image"/>
  </View>
  <BrushLabels name="mask" toName="image" smart="false" opacity="0.5">
    <Label value="object" background="#FF3B30"/>
  </BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true" smartOnly="true" opacity="0.9" strokeWidth="4">
    <Label value="refine" background="#0A84FF"
           hint="Auto-Detect tool: Ctrl+click adds, Ctrl+Alt+click takes away"/>
  </KeyPointLabels>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <TextArea name="phrase" toName="image" perRegion="true" displayMode="region-list" whenLabelValue="object"
            editable="true" required="true" requiredMessage="Every mask needs its phrase"
            maxSubmissions="1" rows="1" smart="false"/>
</View>
"""

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
    "click": '<KeyPointLabels name="click" toName="{image}" smart="true" smartOnly="true">'
    '<Label value="refine" hint="Auto-Detect tool: Ctrl+click adds, Ctrl+Alt+click takes away"/>'
    "</KeyPointLabels>",
}
"""XML to add for a role: `image` is the image tag's name, `labels` the brush's labels, comma separated."""
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
    "click": "there is no smart <KeyPointLabels>: masks are corrected with the brush, not by clicks",
}
"""What is missing without the role, and what follows from it."""
