-- Builds what was held back.
obj.spec.suspend = false
return obj
