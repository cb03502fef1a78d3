"""Images with their classes: where they come from, what may be wrong with them, and batches of them.

sources       rows of Parquet files, folders, the embedded digits and shapes (shapes makes them), as they are
hub           data sets of Hugging Face's hub (hub_tables: their splits), copied to this machine (places: where to)
encoded       their images, in memory or in files
decode        from encoded bytes to pixels, by Pillow
labels        from what is written beside an image to the number of its class
collection    the rows that are left, with everything that was wrong counted; pixels by row
long_tail     classes of very unequal size
sampling      how often each training image comes
chance        random numbers by (seed, epoch, image)
augment       crops, flips, RandAugment (randaugment), erasing and mixing (mixing) on batches of bytes
elsewhere     what travels to processes that make batches for this one
batches       a rank's steps, and the held-out images
"""
