"""Labels exported as COCO, RefCOCO and PNG."""
