"""`darkroom run`: from a folder of images to a served model, through Airflow or without it."""
