"""Export of labels as COCO, RefCOCO and PNG."""
