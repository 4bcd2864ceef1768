-- Stops what runs and starts nothing.
obj.spec.suspend = true
return obj
